//! Fields of requests, checked one by one: an error names the field and tells what it can be.

use pollux_pool::layout::BLOCK_BYTES;
use pollux_pool::layout::label::is_name;
use tonic::Status;
use uuid::Uuid;

use super::status::field;

/// Things of a list in one answer, unless another number is asked for, and at most.
const PAGE_SIZE: u32 = 100;
const PAGE_SIZE_MAX: u32 = 1_000;

/// The longest size of anything here, in bytes: what a signed number can hold, as others count in those.
const SIZE_BYTES_MAX: u64 = i64::MAX as u64;

type Checked<T> = Result<T, Status>;

/// A name of a pool, volume or snapshot.
pub(super) fn name(name: &str, value: String) -> Checked<String> {
    if is_name(&value) {
        return Ok(value);
    }
    let problem = match value.as_str() {
        "" => "is missing: a name has 1 to 95 bytes without control characters and slashes".to_owned(),
        _ => {
            let shown: String = value.chars().take(64).collect();
            format!("{shown:?} is no name: 1 to 95 bytes without control characters and slashes")
        }
    };
    Err(field(name, &problem))
}

/// A size, as blocks of 4 KiB.
pub(super) fn blocks(name: &str, bytes: u64) -> Checked<u64> {
    match bytes {
        0 => Err(field(name, "is 0: a volume has at least 4096 bytes")),
        _ => block(name, bytes),
    }
}

/// A place or a size, as blocks of 4 KiB.
pub(super) fn block(name: &str, bytes: u64) -> Checked<u64> {
    let block_bytes = BLOCK_BYTES as u64;
    if !bytes.is_multiple_of(block_bytes) {
        return Err(field(name, &format!("{bytes} is no multiple of {block_bytes}")));
    }
    if bytes > SIZE_BYTES_MAX {
        return Err(field(name, &format!("{bytes} is more than any volume has")));
    }
    Ok(bytes / block_bytes)
}

/// A UUID.
pub(super) fn uuid(name: &str, text: &str) -> Checked<Uuid> {
    match text.parse::<Uuid>() {
        Ok(uuid) if !uuid.is_nil() => Ok(uuid),
        _ => {
            let shown: String = text.chars().take(64).collect();
            Err(field(name, &format!("{shown:?} is no UUID, or all zeros")))
        }
    }
}

/// The number of a device of a pool.
pub(super) fn device_number(name: &str, number: u32) -> Checked<u8> {
    let max = pollux_pool::layout::DEVICES_MAX;
    match u8::try_from(number) {
        Ok(small) if usize::from(small) < max => Ok(small),
        _ => Err(field(
            name,
            &format!("{number} is no number of a device: 0 to {}", max - 1),
        )),
    }
}

/// URIs of devices: some, not too many, none twice.
pub(super) fn devices(name: &str, uris: Vec<String>) -> Checked<Vec<String>> {
    let max = pollux_pool::layout::DEVICES_MAX;
    if uris.is_empty() || uris.len() > max {
        let found = uris.len();
        return Err(field(
            name,
            &format!("{found} are given: a pool has 1 to {max} devices"),
        ));
    }
    for (at, uri) in uris.iter().enumerate() {
        if uri.is_empty() {
            return Err(field(name, "one of them is empty"));
        }
        if uris.iter().take(at).any(|other| other == uri) {
            return Err(field(name, "one of them is given twice"));
        }
    }
    Ok(uris)
}

/// How much of a list is asked for.
pub(super) fn page_size(name: &str, size: u32) -> Checked<usize> {
    match size {
        0 => Ok(PAGE_SIZE as usize),
        1..=PAGE_SIZE_MAX => Ok(size as usize),
        _ => Err(field(name, &format!("{size} is more than {PAGE_SIZE_MAX}"))),
    }
}

/// Where a list goes on: the last name of the page before, or nothing.
pub(super) fn page_token(name: &str, token: String) -> Checked<String> {
    if token.is_empty() || is_name(&token) {
        return Ok(token);
    }
    Err(field(name, "is not from an answer of this call"))
}

/// The part of a list that is a page, and where the next one begins.
pub(super) fn page<T>(mut all: Vec<T>, size: usize, name: impl Fn(&T) -> &str) -> (Vec<T>, String) {
    let more = all.len() > size;
    all.truncate(size);
    let token = all.last().filter(|_| more).map(|last| name(last).to_owned());
    (all, token.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem<T: std::fmt::Debug>(checked: Checked<T>) -> String {
        checked.expect_err("it is wrong").message().to_owned()
    }

    #[test]
    fn what_is_wrong_is_told_with_the_field() {
        for (problem, field, part) in [
            (problem(name("pool", String::new())), "pool", "missing"),
            (problem(name("pool", "a/b".to_owned())), "pool", "slashes"),
            (problem(name("pool", "x".repeat(96))), "pool", "95 bytes"),
            (problem(blocks("size_bytes", 0)), "size_bytes", "is 0"),
            (problem(blocks("size_bytes", 4097)), "size_bytes", "multiple"),
            (problem(blocks("size_bytes", 1 << 63)), "size_bytes", "more than"),
            (problem(uuid("uuid", "x")), "uuid", "no UUID"),
            (problem(uuid("uuid", &Uuid::nil().to_string())), "uuid", "zeros"),
            (problem(devices("devices", vec![])), "devices", "1 to"),
            (
                problem(devices("devices", vec!["a".to_owned(); 2])),
                "devices",
                "twice",
            ),
            (
                problem(devices("devices", vec![String::new()])),
                "devices",
                "empty",
            ),
            (problem(page_size("page_size", 1001)), "page_size", "1000"),
            (
                problem(page_token("page_token", "/".to_owned())),
                "page_token",
                "answer",
            ),
        ] {
            assert!(problem.starts_with(field) && problem.contains(part), "{problem}");
        }
    }

    #[test]
    fn pages_end() {
        let names = |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let (first, token) = page(names(&["a", "b", "c"]), 2, |name| name);
        assert_eq!((first, token), (names(&["a", "b"]), "b".to_owned()));
        let (last, token) = page(names(&["c", "d"]), 2, |name| name);
        assert_eq!((last, token), (names(&["c", "d"]), String::new()));
        assert_eq!(
            page(Vec::<String>::new(), 2, |name| name),
            (vec![], String::new())
        );
    }
}
