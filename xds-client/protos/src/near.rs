//! Finding the name that a person meant.

use crate::table::Message;

/// The one of `names` that `wrong` was probably meant to be, if it is like any of them.
pub fn nearest<'n>(wrong: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    /// Longer names come from no person, and the distance costs their product.
    const LONGEST: usize = 100;
    /// Past it, it is another name.
    const MOST_CHANGES: usize = 6;
    if wrong.len() > LONGEST {
        return None;
    }
    let limit = (wrong.len() / 3).clamp(1, MOST_CHANGES);
    names
        .filter(|name| letters(name).count().abs_diff(letters(wrong).count()) <= limit)
        .map(|name| (distance(wrong, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

fn letters(text: &str) -> impl Iterator<Item = u8> {
    text.bytes().filter(|b| *b != b'_').map(|b| b.to_ascii_lowercase())
}

/// The name of the message type that was probably meant.
pub fn nearest_type(full_name: &str) -> Option<&'static str> {
    nearest(full_name, Message::all().filter(|message| !message.is_map_entry()).map(Message::name))
}

/// How many letters must be added, dropped or changed; case and underscores count for nothing.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<u8>, Vec<u8>) = (letters(a).collect(), letters(b).collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_was_meant_is_found() {
        let names = ["connect_timeout", "idle_timeout", "name"];
        let near = |wrong| nearest(wrong, names.into_iter());
        assert_eq!(near("conect_timeout"), Some("connect_timeout"));
        assert_eq!(near("idleTimeout"), Some("idle_timeout"));
        assert_eq!(near("something_else"), None);
        assert_eq!(near(&"x".repeat(1000)), None);
        let manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        assert_eq!(nearest_type(&manager.replace("Manager", "Manger")), Some(manager));
        assert_eq!(nearest_type("no.such.Type"), None);
    }
}
