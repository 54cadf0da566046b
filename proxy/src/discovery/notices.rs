//! What the resources of one push set without effect: said once for each thing, however many resources have it.

use crate::config::Notices;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Lines of one push; texts in them come from a control plane, so there must be an end.
const MOST_LINES: usize = 50;

/// Gathered while a push is taken, logged when that is done.
#[derive(Default)]
pub(super) struct PushNotices {
    lines: Vec<Line>,
    /// By what is said, with the numbers in paths left out: place in `lines`.
    known: HashMap<String, usize>,
    /// Distinct things that found no room.
    more: usize,
}

struct Line {
    text: String,
    /// The resource that was the first to have it.
    first: String,
    /// How many others have it.
    others: usize,
    /// The last one that was counted: a resource that has it in many places counts once.
    last: String,
}

impl PushNotices {
    /// `deprecated`: whether deprecated fields are said.
    pub fn add(&mut self, name: &str, notices: &Notices, deprecated: bool) {
        for warning in &notices.warnings {
            self.say(name, &warning.path, &warning.meaning, false);
        }
        for unknown in &notices.unknown {
            self.say(name, &unknown.path, "is an unknown field", false);
        }
        for field in notices.deprecated.iter().filter(|_| deprecated) {
            self.say(name, &field.path, &field.to_string(), true);
        }
    }

    fn say(&mut self, name: &str, path: &str, what: &str, deprecated: bool) {
        let room = self.lines.len() < MOST_LINES;
        match self.known.entry(format!("{}: {what}", shape(path))) {
            Entry::Occupied(known) => {
                let line = &mut self.lines[*known.get()];
                if line.last != name {
                    line.others += 1;
                    name.clone_into(&mut line.last);
                }
            }
            Entry::Vacant(_) if !room => self.more += 1,
            Entry::Vacant(free) => {
                free.insert(self.lines.len());
                let text =
                    if deprecated { format!("Deprecated field: {what} ({path})") } else { format!("{path}: {what}") };
                self.lines.push(Line { text, first: name.to_owned(), others: 0, last: name.to_owned() });
            }
        }
    }

    /// What is to be logged of resources that are called `kind`.
    pub fn lines(self, kind: &str) -> impl Iterator<Item = String> {
        let more = (self.more > 0).then(|| {
            format!("{kind}: {} more notices of this push are not logged; /ledger has them by resource", self.more)
        });
        let kind = kind.to_owned();
        let lines = self.lines.into_iter().map(move |line| match line.others {
            0 => format!("{kind} {}: {}", line.first, line.text),
            n => format!("{kind} {} +{n} others: {}", line.first, line.text),
        });
        lines.chain(more)
    }
}

/// A path without its indices and keys.
fn shape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut inside = false;
    for c in path.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            _ if inside => continue,
            _ => {}
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Warning;

    fn notices(warnings: &[(&str, &str)]) -> Notices {
        let warning =
            |(path, meaning): &(&str, &str)| Warning { path: (*path).into(), meaning: (*meaning).into(), count: 1 };
        let warnings = warnings.iter().map(warning).collect();
        let mut notices = Notices::default();
        notices.warnings = warnings;
        notices
    }

    #[test]
    fn one_line_for_each_thing_with_the_first_resource_and_how_many_others() {
        let mut said = PushNotices::default();
        said.add("a", &notices(&[("routes[0].x", "no effect"), ("routes[1].x", "no effect"), ("y", "nothing")]), true);
        said.add("b", &notices(&[("routes[7].x", "no effect")]), true);
        said.add("c", &notices(&[("routes[2].x", "no effect"), ("y", "other")]), true);
        assert_eq!(
            said.lines("cluster").collect::<Vec<_>>(),
            ["cluster a +2 others: routes[0].x: no effect", "cluster a: y: nothing", "cluster c: y: other"]
        );
    }

    #[test]
    fn the_end_of_the_list_is_said() {
        let mut said = PushNotices::default();
        for n in 0..MOST_LINES + 7 {
            said.add("a", &notices(&[("x", &format!("meaning {n}"))]), true);
        }
        let lines: Vec<String> = said.lines("cluster").collect();
        assert_eq!(lines.len(), MOST_LINES + 1);
        assert!(lines[MOST_LINES].contains("7 more notices"), "{}", lines[MOST_LINES]);
    }
}
