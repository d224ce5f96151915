//! Pages of lists: no answer is larger than a client takes, and whoever goes from page to page misses nothing that stays.
//!
//! A list is in the order of keys that its objects keep, and a page begins after the key that the one before ended with: what comes
//! and goes meanwhile moves nothing else.

use prost::Message;

use super::error::ControlError;

/// Bytes of an answer's objects: well below the 4 MiB that clients take.
const MOST_BYTES: usize = 2 << 20;
/// Characters of the longest token that is looked at.
const LONGEST_TOKEN: usize = 1024;
/// Between the parts of a token. No part has one.
const BETWEEN: char = '\u{1f}';

/// What a request says about its page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// 0 for as many as there is room for.
    pub(crate) size: u32,
    pub(crate) token: String,
}

/// Some of a list, and where the next page begins; empty on the last one.
pub(crate) type Page<T> = (Vec<T>, String);

/// The page of a list that is wanted. `list` is what it lists, with what the request chose of it: a token is good for the same only.
pub(crate) fn page<T: Message, const N: usize>(
    list: &str,
    items: Vec<T>,
    key: impl Fn(&T) -> [&str; N],
    wanted: &Wanted,
) -> Result<Page<T>, ControlError> {
    let after = read(list, &wanted.token)?;
    let is_after =
        |item: &T| after.as_ref().is_none_or(|after| key(item).into_iter().gt(after.iter().map(String::as_str)));
    cut(list, items.into_iter().filter(|item| is_after(item)), |item| key(item).join(&BETWEEN.to_string()), wanted)
}

/// The same for a list whose order is its own: the key finds the place. One that is gone is an error.
pub(crate) fn page_in_order<T: Message>(
    list: &str,
    items: Vec<T>,
    key: impl Fn(&T) -> &str,
    wanted: &Wanted,
) -> Result<Page<T>, ControlError> {
    let begin = match read(list, &wanted.token)?.map(|after| after.concat()) {
        None => 0,
        Some(after) => match items.iter().position(|item| key(item) == after) {
            Some(place) => place + 1,
            None => return Err(ControlError::invalid("page_token", "where the page before ended is gone: list again")),
        },
    };
    cut(list, items.into_iter().skip(begin), |item| key(item).to_owned(), wanted)
}

fn cut<T: Message>(
    list: &str,
    items: impl Iterator<Item = T>,
    key: impl Fn(&T) -> String,
    wanted: &Wanted,
) -> Result<Page<T>, ControlError> {
    let most = if wanted.size == 0 { usize::MAX } else { usize::try_from(wanted.size).unwrap_or(usize::MAX) };
    let (mut page, mut bytes) = (Vec::new(), 0);
    for item in items {
        bytes += item.encoded_len();
        // One at least, so that there is an end.
        if page.len() == most || (bytes > MOST_BYTES && !page.is_empty()) {
            let last = page.last().map(&key).unwrap_or_default();
            return Ok((page, write(list, &last)));
        }
        page.push(item);
    }
    Ok((page, String::new()))
}

/// Hexadecimal digits: nobody is tempted to look into it, and it passes through everything.
fn write(list: &str, key: &str) -> String {
    let text = format!("{list}{BETWEEN}{key}");
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// The parts of the key that a token has; none for the first page.
fn read(list: &str, token: &str) -> Result<Option<Vec<String>>, ControlError> {
    if token.is_empty() {
        return Ok(None);
    }
    let bad = || ControlError::invalid("page_token", "it is not of this list: begin with an empty one");
    if token.len() > LONGEST_TOKEN || !token.len().is_multiple_of(2) || !token.is_ascii() {
        return Err(bad());
    }
    let byte = |at: usize| u8::from_str_radix(&token[at..at + 2], 16).map_err(|_| bad());
    let bytes = (0..token.len()).step_by(2).map(byte).collect::<Result<_, _>>()?;
    let text = String::from_utf8(bytes).map_err(|_| bad())?;
    let key = text.strip_prefix(list).and_then(|key| key.strip_prefix(BETWEEN)).ok_or_else(bad)?;
    Ok(Some(key.split(BETWEEN).map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use proto::v1::Store;

    use super::*;

    fn stores(names: &[&str]) -> Vec<Store> {
        names.iter().map(|name| Store { name: (*name).to_owned(), ..Store::default() }).collect()
    }

    fn named(items: Vec<Store>, size: u32, token: &str) -> Result<(Vec<String>, String), ControlError> {
        let wanted = Wanted { size, token: token.to_owned() };
        let (page, next) = page("stores", items, |store| [&store.name, &store.uuid], &wanted)?;
        Ok((page.into_iter().map(|store| store.name).collect(), next))
    }

    #[test]
    fn pages_follow_one_another_whatever_comes_and_goes() {
        let (first, token) = named(stores(&["a", "b", "c", "d"]), 2, "").expect("a page");
        assert_eq!(first, ["a", "b"]);
        // The last one of that page goes, another comes before it, and one after it.
        let (second, token) = named(stores(&["a", "aa", "bb", "c", "d"]), 2, &token).expect("a page");
        assert_eq!(second, ["bb", "c"]);
        let (third, token) = named(stores(&["a", "c", "d"]), 2, &token).expect("a page");
        assert_eq!((third, token), (vec!["d".to_owned()], String::new()));
    }

    #[test]
    fn a_page_that_is_just_full_is_the_last_one() {
        assert_eq!(named(stores(&["a", "b"]), 2, "").expect("a page").1, "");
        assert_eq!(named(Vec::new(), 0, "").expect("a page"), (Vec::new(), String::new()));
    }

    #[test]
    fn a_page_ends_before_it_is_too_large_for_a_client() {
        let large = |name: String| Store { name, reason: "x".repeat(MOST_BYTES / 2), ..Store::default() };
        let all: Vec<_> = (0..5).map(|n| large(n.to_string())).collect();
        let (mut seen, mut token) = (Vec::new(), String::new());
        for _ in &all {
            let (page, next) = named(all.clone(), 0, &token).expect("a page");
            assert_eq!(page.len(), 1, "two with their names are more than there is room for");
            seen.extend(page);
            token = next;
        }
        assert_eq!(token, "");
        assert_eq!(seen, ["0", "1", "2", "3", "4"]);
    }

    #[test]
    fn a_token_that_is_not_of_this_list_is_refused() {
        let token = named(stores(&["a", "b"]), 1, "").expect("a page").1;
        let other = Wanted { size: 1, token };
        assert!(page("volumes", stores(&["a"]), |store| [&store.name], &other).is_err());
        for token in ["0", "zz", "é0", "ff", "6162", &"00".repeat(600)] {
            assert!(named(stores(&["a"]), 1, token).is_err(), "{token}");
        }
    }

    #[test]
    fn an_order_of_its_own_is_kept_and_a_place_that_is_gone_is_told() {
        let names = |wanted: &Wanted, items| {
            let (page, next) = page_in_order("snapshots", items, |store: &Store| &store.name, wanted)?;
            Ok::<_, ControlError>((page.into_iter().map(|store| store.name).collect::<Vec<_>>(), next))
        };
        let first = Wanted { size: 2, ..Wanted::default() };
        let (page, token) = names(&first, stores(&["z", "a", "m"])).expect("a page");
        assert_eq!(page, ["z", "a"]);
        let second = Wanted { size: 2, token };
        assert_eq!(names(&second, stores(&["z", "a", "m"])).expect("a page").0, ["m"]);
        assert!(names(&second, stores(&["z", "m"])).is_err_and(|error| error.to_string().contains("list again")));
    }
}
