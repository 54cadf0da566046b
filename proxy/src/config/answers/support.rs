//! The support page: the table of answers as a page for people, held to the table by a test.

use super::runtime::known;
use super::table::{Answer, MessageAnswers, SUBJECTS, table};
use std::fmt::Write as _;
use std::path::Path;

/// Set to write the page anew: `UPDATE_SUPPORT=1 cargo test -p outrigger support_page`.
const UPDATE: &str = "UPDATE_SUPPORT";

const HEAD: &str = "\
# What becomes of each field

Printed from the table of answers in `src/config/answers/`; do not edit by hand. `UPDATE_SUPPORT=1 cargo test -p outrigger
support_page` writes it anew.

- **act**: the field is honoured; the note says where its limits are.
- **warn**: the field is known and has no effect. Setting it is named with its path in the log, in a stat and in the ledger;
  the note says what is lost.
- **reject**: the resource is refused with the path and the reason, which is the note. What guards security acts or is
  rejected, never warned about.
- **idle**: the field passes in silence, for nothing that is accepted here depends on it; the note says what would. What
  is set is shown in /config_dump.
- *unless* names a value that is what happens anyway: setting the field to it passes in silence.

A field that is not listed is unknown and is reported as such. Extensions are looked up by the type of their configuration.
";

/// How many answers there are of each kind.
#[derive(Default)]
struct Count {
    act: usize,
    warn: usize,
    reject: usize,
    idle: usize,
}

impl Count {
    fn add(&mut self, answer: &Answer) {
        match answer {
            Answer::Act { .. } => self.act += 1,
            Answer::Warn { .. } => self.warn += 1,
            Answer::Reject { .. } => self.reject += 1,
            Answer::Idle { .. } => self.idle += 1,
        }
    }

    fn row(&self, of: &str) -> String {
        let Count { act, warn, reject, idle } = self;
        format!("| {of} | {act} | {warn} | {reject} | {idle} | {} |\n", act + warn + reject + idle)
    }
}

/// Answer and note of a field, as two cells.
fn cells(answer: &Answer) -> String {
    let with = |word: &str, unless: &Option<&str>, why: &str| match unless {
        Some(value) => format!("{word} unless `{value}` | {why}"),
        None => format!("{word} | {why}"),
    };
    match answer {
        Answer::Act { note } => with("act", &None, note),
        Answer::Warn { meaning, unless } => with("warn", unless, meaning),
        Answer::Reject { reason, unless } => with("reject", unless, reason),
        Answer::Idle { why } => with("idle", &None, why),
    }
}

/// Extensions that are not built, and messages that have no fields.
fn is_whole(answers: &MessageAnswers) -> bool {
    answers.fields.is_empty()
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    let (mut fields, mut whole) = (Count::default(), Count::default());
    for answers in table().messages() {
        answers.fields.iter().for_each(|(_, answer)| fields.add(answer));
        if is_whole(answers) {
            whole.add(&answers.whole);
        }
    }
    page.push_str("\n| | act | warn | reject | idle | all |\n|---|---:|---:|---:|---:|---:|\n");
    page.push_str(&fields.row("Fields"));
    page.push_str(&whole.row("Extensions and messages as a whole"));
    let mut keys = Count::default();
    known().iter().for_each(|(_, answer)| keys.add(answer));
    page.push_str(&keys.row("Keys of runtime"));
    for (subject, _) in SUBJECTS {
        let own = || table().messages().iter().filter(|answers| answers.subject == *subject);
        // Writing to a String does not fail.
        let _ = write!(page, "\n## {subject}\n");
        for answers in own().filter(|answers| !is_whole(answers)) {
            let _ = write!(page, "\n### {}\n\n| Field | Answer | Note |\n|---|---|---|\n", answers.message.name());
            for (field, answer) in &answers.fields {
                let old = if field.is_deprecated() { " (deprecated)" } else { "" };
                let _ = writeln!(page, "| `{}`{old} | {} |", field.name(), cells(answer));
            }
        }
        if own().any(is_whole) {
            page.push_str("\n### As a whole\n\n| Type | Answer | Note |\n|---|---|---|\n");
            for answers in own().filter(|answers| is_whole(answers)) {
                let _ = writeln!(page, "| `{}` | {} |", answers.message.name(), cells(&answers.whole));
            }
        }
    }
    page.push_str("\n## Keys of runtime\n\n| Key | Answer | Note |\n|---|---|---|\n");
    for (pattern, answer) in known() {
        let _ = writeln!(page, "| `{pattern}` | {} |", cells(answer));
    }
    page.replace(" |  |", " | |")
}

#[test]
fn the_support_page_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("SUPPORT.md");
    let page = page();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let first = found.lines().zip(page.lines()).find(|(found, page)| found != page);
    assert!(
        found == page,
        "SUPPORT.md is not what the table says, first at {first:?}; {UPDATE}=1 cargo test -p outrigger support_page writes it"
    );
}
