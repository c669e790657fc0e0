//! The kernels as the program carries them: one fat binary, made by `kernels/build.sh`, and which of its images a card takes.
//!
//! NVIDIA does not document the format. What is read here was seen in libcurand of CUDA 12.0 and 12.8, and in what NVIDIA's tools make.

/// A file that begins on 16 bytes: a driver may be given its address.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../../kernels/kernels.fatbin"));

/// The kernels for compute capability 8.0, 9.0a and 12.0, and as PTX for what these do not run on.
pub static FATBIN: &[u8] = &ALIGNED.0;

/// One of the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// PTX, which the driver compiles at the first start; else a cubin, which a card of its kind runs as it is.
    pub ptx: bool,
    /// The capability it is made for: 80 is 8.0.
    pub card: u32,
    /// Of a card's own features ("90a"): it runs on no other.
    pub exact: bool,
    /// Of the PTX language, or of the layout of cubins: major, minor.
    pub version: (u16, u16),
    /// How it is packed: nothing, LZ4, or what older drivers do not know.
    pub packing: Packing,
    /// Where it begins in the file, and how many bytes it has there and once unpacked.
    pub at: usize,
    pub packed: usize,
    pub unpacked: usize,
}

/// How an image is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    None,
    Lz4,
    Other,
}

const FLAG_LZ4: u64 = 0x2000;
/// Zstandard is 0x8000, since CUDA 12.9 or 13; 0x1000 is an older form that no tool makes today.
const FLAG_OTHER: u64 = 0x9000;
const FLAG_EXACT: u64 = 0x10_0000;

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let part = bytes.get(at..at + N)?;
    Some(part.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
}

/// The images of a fat binary, in order; None if it is not one.
pub fn images(file: &[u8]) -> Option<Vec<Image>> {
    let header = number::<2>(file, 6)? as usize;
    let end = header.checked_add(number::<8>(file, 8)? as usize)?;
    if number::<4>(file, 0)? != 0xBA55_ED50 || number::<2>(file, 4)? != 1 || end != file.len() {
        return None;
    }
    let (mut images, mut from) = (Vec::new(), header);
    while from < end {
        let entry = file.get(from..)?;
        let (header, size) = (number::<4>(entry, 4)? as usize, number::<8>(entry, 8)? as usize);
        let flags = number::<8>(entry, 40)?;
        let packing = match flags {
            _ if flags & FLAG_OTHER != 0 => Packing::Other,
            _ if flags & FLAG_LZ4 != 0 => Packing::Lz4,
            _ => Packing::None,
        };
        // The size of an entry is rounded up; a packed one names its own.
        let (packed, unpacked) = match packing {
            Packing::None => (size, size),
            _ => (number::<4>(entry, 16)? as usize, number::<8>(entry, 56)? as usize),
        };
        images.push(Image {
            ptx: number::<2>(entry, 0)? == 1,
            card: number::<4>(entry, 28)? as u32,
            exact: flags & FLAG_EXACT != 0,
            version: (number::<2>(entry, 26)? as u16, number::<2>(entry, 24)? as u16),
            packing,
            at: from + header,
            packed,
            unpacked,
        });
        from = from.checked_add(header)?.checked_add(size)?;
        if header < 64 || from > end {
            return None;
        }
    }
    Some(images)
}

/// What a card of this compute capability runs: a cubin of its own major number and no later minor one, the latest of them, or else
/// PTX. None: the kernels have nothing for it.
pub fn image_for(images: &[Image], (major, minor): (i32, i32)) -> Option<&Image> {
    let card = (10 * major + minor) as u32;
    let runs = |image: &&Image| match image {
        Image { ptx: true, .. } => image.card <= card,
        Image { exact: true, .. } => image.card == card,
        _ => image.card / 10 == card / 10 && image.card <= card,
    };
    images.iter().filter(runs).max_by_key(|image| (!image.ptx, image.card))
}

/// The PTX among the kernels.
pub fn ptx() -> Option<String> {
    let image = images(FATBIN)?.into_iter().find(|image| image.ptx)?;
    let text = String::from_utf8(unpack(FATBIN, &image)?).ok()?;
    Some(text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_string())
}

/// An image as it was before it was packed; None where it is not whole, or packed in another way than by LZ4.
fn unpack(file: &[u8], image: &Image) -> Option<Vec<u8>> {
    let packed = file.get(image.at..image.at + image.packed)?;
    match image.packing {
        Packing::None => Some(packed.to_vec()),
        Packing::Lz4 => lz4(packed).filter(|code| code.len() == image.unpacked),
        Packing::Other => None,
    }
}

/// A block of LZ4, as in its published description.
fn lz4(packed: &[u8]) -> Option<Vec<u8>> {
    /// A length of 15 goes on in the bytes that follow, up to one that is not 255.
    fn length(short: u8, rest: &mut impl Iterator<Item = u8>) -> Option<usize> {
        let (mut length, mut goes_on) = (short as usize, short == 15);
        while goes_on {
            let more = rest.next()?;
            (length, goes_on) = (length + more as usize, more == 255);
        }
        Some(length)
    }
    let (mut out, mut rest) = (Vec::new(), packed.iter().copied());
    while let Some(token) = rest.next() {
        let literals = length(token >> 4, &mut rest)?;
        out.extend(rest.by_ref().take(literals));
        let Some(low) = rest.next() else { break }; // the last sequence is literals alone
        let back = u16::from_le_bytes([low, rest.next()?]) as usize;
        let from = out.len().checked_sub(back).filter(|_| back > 0)?;
        for at in from..from + 4 + length(token & 15, &mut rest)? {
            out.push(out[at]);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with an image for the drivers that should load it: CUDA 12.0, which drivers from 525 on have, takes PTX 8.0, cubins of
    /// layout 1.7, nothing packed but by LZ4. A card of capability 10.0 and later has no driver that is older than CUDA 12.8, with layout 1.8.
    fn refused(image: &Image, file: &[u8]) -> Option<String> {
        let most = match image {
            Image { ptx: true, .. } => (8, 0),
            Image { card: ..100, .. } => (1, 7),
            _ => (1, 8),
        };
        if image.version > most {
            return Some(format!("{image:?} is newer than {most:?}"));
        }
        if image.packing == Packing::Other {
            return Some(format!("{image:?} is packed as CUDA 12.0 cannot unpack it"));
        }
        // The header says so, and so does the image itself.
        let Some(code) = unpack(file, image) else { return Some(format!("{image:?} is not whole")) };
        let right = if image.ptx {
            let text = String::from_utf8_lossy(&code);
            text.contains("\n.version 8.0\n") && text.contains(&format!("\n.target sm_{}\n", image.card))
        } else {
            // ELF's identification: 64 bits, and the layout of the cubin, 0x33 and 7 in CUDA 12.0, 0x41 and 8 for the later cards.
            let layout = if image.card < 100 { [0x33, 7] } else { [0x41, 8] };
            code.starts_with(b"\x7fELF\x02") && code[7..9] == layout
        };
        (!right).then(|| format!("{image:?} is not what its header says"))
    }

    #[test]
    fn the_kernels_load_on_drivers_of_cuda_12_0() {
        let images = images(FATBIN).expect("a fat binary");
        for image in &images {
            assert_eq!(refused(image, FATBIN), None);
        }
        let made: Vec<_> = images.iter().map(|i| (i.ptx, i.card, i.exact)).collect();
        assert_eq!(made, [(false, 80, false), (false, 90, true), (false, 120, false), (true, 80, false)]);
        assert_eq!(FATBIN.as_ptr() as usize % 16, 0);
    }

    /// The test above can fail: the same file with newer numbers, packed otherwise, or cut is refused.
    #[test]
    fn newer_images_are_noticed() {
        let first = 16;
        for (at, value) in [(first + 24, 8), (first + 41, 0x80), (first + 28, 120)] {
            let mut file = FATBIN.to_vec();
            file[at] = value;
            let images = images(&file).unwrap();
            assert!(refused(&images[0], &file).is_some(), "byte {at}");
        }
        let mut file = FATBIN.to_vec();
        let ptx = *images(&file).unwrap().last().unwrap();
        let version = (ptx.at - 80) + 26;
        assert_eq!(file[version], 8);
        file[version] = 9;
        assert!(refused(images(&file).unwrap().last().unwrap(), &file).is_some());
        assert_eq!(images(&FATBIN[..FATBIN.len() - 1]), None);
        assert_eq!(images(b"\x7fELF"), None);
    }

    #[test]
    fn the_ptx_as_text() {
        let ptx = ptx().unwrap();
        assert!(ptx.starts_with("//") && ptx.ends_with('}') && ptx.contains(".entry gemm_nt_bf16_128("));
        assert_eq!(lz4(&[0x11, b'a', 1, 0, 0x20, b'b', b'c']).unwrap(), b"aaaaaabc");
        for broken in
            [&[0xf0][..], &[0x10, b'a', 2, 0], &[0x10, b'a', 0, 0], &[0x10, b'a', 1], &[0x1f, b'a', 1, 0, 255]]
        {
            assert_eq!(lz4(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn which_image_a_card_takes() {
        let images = images(FATBIN).unwrap();
        let of = |card| image_for(&images, card).map(|i| (i.ptx, i.card));
        for card in [(8, 0), (8, 6), (8, 7), (8, 9)] {
            assert_eq!(of(card), Some((false, 80)));
        }
        assert_eq!(of((9, 0)), Some((false, 90)));
        for card in [(12, 0), (12, 1)] {
            assert_eq!(of(card), Some((false, 120)));
        }
        for card in [(10, 0), (10, 3), (11, 0), (13, 0)] {
            assert_eq!(of(card), Some((true, 80)), "compiled by the driver");
        }
        assert_eq!(of((7, 5)), None);
    }
}
