//! The headers of a tar archive: where its files are stored. (v7, ustar, GNU and PAX; the crate's own walk reads a long name of any size
//! into memory.)

use std::fs::File;
use std::io::{self, BufReader, Read};

use tar::{EntryType, Header};

use super::shard::Count;

/// A member that is a plain file.
pub(crate) struct Member {
    /// Without a leading `./`.
    pub name: String,
    /// Where its bytes begin, and how many there are.
    pub at: u64,
    pub bytes: u64,
    /// Where the name ends in `.cls`: its content, [`MAX_TEXT`] bytes at most.
    pub text: Option<Vec<u8>>,
}

/// What an archive holds.
pub(crate) struct Listing {
    pub members: Vec<Member>,
    /// Links, devices and sparse files. (Folders are not counted.)
    pub no_file: Count,
}

/// Why an archive is not read.
#[derive(Debug)]
pub(crate) enum Wrong {
    Io(io::Error),
    /// A part of a sentence that begins with the archive's name.
    Tar {
        what: String,
        hint: &'static str,
    },
}

impl From<io::Error> for Wrong {
    fn from(e: io::Error) -> Wrong {
        Wrong::Io(e)
    }
}

fn wrong(what: impl Into<String>, hint: &'static str) -> Wrong {
    Wrong::Tar { what: what.into(), hint }
}

/// Largest header that carries a long name or other attributes of a file.
const MAX_HEADER: u64 = 1 << 20;
/// A label is a short text.
const MAX_TEXT: u64 = 64;

/// What can be read, and passed over faster than read.
pub(crate) trait Input: Read {
    /// Errors where fewer bytes are left and that can be known.
    fn pass(&mut self, bytes: u64) -> io::Result<()>;
}

impl Input for BufReader<File> {
    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        self.seek_relative(i64::try_from(bytes).map_err(io::Error::other)?)
    }
}

/// What the headers before a member's own state about it.
#[derive(Default)]
struct Before {
    name: Option<Vec<u8>>,
    bytes: Option<u64>,
    sparse: bool,
}

/// Reads the headers of an archive of `length` bytes, and what comes after its end.
pub(crate) fn list<I: Input>(input: &mut I, length: u64) -> Result<Listing, Wrong> {
    let mut listing = Listing { members: Vec::new(), no_file: Count::default() };
    let (mut at, mut before) = (0u64, Before::default());
    while let Some(header) = header(input)? {
        at += 512;
        let kind = header.entry_type();
        let bytes = before.bytes.take().map_or_else(|| header.entry_size(), Ok)?;
        let stop = at.checked_add(bytes).and_then(|stop| stop.checked_next_multiple_of(512));
        let Some(stop) = stop.filter(|_| at + bytes <= length) else {
            return Err(wrong(format!("is cut short: {length} bytes"), "copy it again"));
        };
        if matches!(
            kind,
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
        ) {
            if bytes > MAX_HEADER {
                let what =
                    format!("has a long name or a header of {bytes} bytes before member {}", listing.members.len() + 1);
                return Err(wrong(what, "such headers of up to 1 MiB are read; is it damaged? Copy or pack it again"));
            }
            let mut content = vec![0; bytes as usize];
            input.read_exact(&mut content)?;
            input.pass(stop - at - bytes)?;
            at = stop;
            match kind {
                EntryType::GNULongName => {
                    content.truncate(content.iter().position(|b| *b == 0).unwrap_or(content.len()));
                    before.name = Some(content);
                }
                EntryType::XHeader => before.read(&content)?,
                _ => (),
            }
            continue;
        }
        let Before { name, sparse, .. } = std::mem::take(&mut before);
        let name = String::from_utf8(name.unwrap_or_else(|| header.path_bytes().into_owned())).map_err(|e| {
            let name = String::from_utf8_lossy(e.as_bytes()).into_owned();
            wrong(format!("has a member {name}, whose name is not UTF-8"), "rename it")
        })?;
        let name = name.trim_start_matches("./").to_string();
        let padded = stop - at;
        let mut skip = padded;
        if kind == EntryType::GNUSparse {
            // The list of the chunks goes on in further blocks.
            let mut more = header.as_gnu().is_some_and(|gnu| gnu.is_extended());
            while more {
                let mut block = [0; 512];
                input.read_exact(&mut block)?;
                at += 512;
                more = block[504] == 1;
            }
        }
        let folder = kind == EntryType::Directory || name.ends_with('/');
        if folder {
        } else if sparse || !(kind.is_file() || kind == EntryType::Continuous) {
            listing.no_file.add(1, || name);
        } else {
            let mut text = None;
            if name.ends_with(".cls") {
                let mut content = vec![0; bytes.min(MAX_TEXT) as usize];
                input.read_exact(&mut content)?;
                skip -= content.len() as u64;
                text = Some(content);
            }
            listing.members.push(Member { name, at, bytes, text });
        }
        input.pass(skip)?;
        at += padded;
    }
    Ok(listing)
}

/// The next header; none where the archive ends, in zeros and nothing else.
fn header(input: &mut dyn Read) -> Result<Option<Header>, Wrong> {
    let mut header = Header::new_old();
    let read = fill(input, header.as_mut_bytes())?;
    if read < 512 {
        return Err(wrong("is cut short: a tar without an end", "copy it again"));
    }
    if header.as_bytes().iter().all(|b| *b == 0) {
        let mut buffer = [0; 8192];
        loop {
            match fill(input, &mut buffer)? {
                0 => return Ok(None),
                n if buffer[..n].iter().any(|b| *b != 0) => {
                    let hint = "archives that are put together with cat are not read; unpack and pack them again";
                    return Err(wrong("goes on after its end", hint));
                }
                _ => (),
            }
        }
    }
    let sum =
        header.as_bytes().iter().enumerate().map(|(i, b)| u32::from(if (148..156).contains(&i) { b' ' } else { *b }));
    match header.cksum() {
        Ok(claimed) if claimed == sum.sum::<u32>() => Ok(Some(header)),
        _ => Err(Wrong::Io(io::Error::other("a header's checksum is wrong"))),
    }
}

/// As many bytes as there are.
fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

impl Before {
    /// Reads the records of a PAX header, `LENGTH KEY=VALUE` and a line feed; values may hold anything.
    fn read(&mut self, mut records: &[u8]) -> io::Result<()> {
        let damaged = || io::Error::other("a PAX header is damaged");
        while !records.is_empty() {
            let space = records.iter().position(|b| *b == b' ').ok_or_else(damaged)?;
            let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<u64>().ok();
            let length = number(&records[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(damaged)?;
            let record = records.get(space + 1..length).and_then(|r| r.strip_suffix(b"\n")).ok_or_else(damaged)?;
            records = &records[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(damaged)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"size" => self.bytes = Some(number(value).ok_or_else(damaged)?),
                _ => self.sparse |= key.starts_with(b"GNU.sparse."),
            }
        }
        Ok(())
    }
}
