//! An imitation of `torch.save`.

use std::collections::BTreeMap;
use std::io::Write;

/// What a pickle is made of.
#[derive(Clone)]
pub enum Py {
    Dict(Vec<(String, Py)>),
    /// Shape, and the key of a storage that it fills.
    Tensor(Vec<usize>, String),
    /// Instructions.
    Raw(&'static [u8]),
}

/// Instructions that make a value, in protocol 2.
pub fn pickle(value: &Py, out: &mut Vec<u8>) {
    let text = |s: &str, out: &mut Vec<u8>| {
        out.push(b'X');
        out.extend((s.len() as u32).to_le_bytes());
        out.extend(s.as_bytes());
    };
    let number = |n: usize, out: &mut Vec<u8>| {
        out.push(b'J');
        out.extend((n as u32).to_le_bytes());
    };
    match value {
        Py::Dict(entries) => {
            out.extend(b"}(");
            for (key, value) in entries {
                text(key, out);
                pickle(value, out);
            }
            out.push(b'u');
        }
        Py::Tensor(shape, key) => {
            let count: usize = shape.iter().product();
            out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            text("storage", out);
            out.extend(b"ctorch\nFloatStorage\n");
            text(key, out);
            text("cpu", out);
            number(count, out);
            out.extend(b"tQK\x00(");
            shape.iter().for_each(|&n| number(n, out));
            out.extend(b"t(");
            (0..shape.len()).for_each(|i| number(shape[i + 1..].iter().product(), out));
            out.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
        }
        Py::Raw(bytes) => out.extend(*bytes),
    }
}

/// How an archive is written.
#[derive(Clone, Copy, Default)]
pub struct Way {
    /// Numbers and the byte-order entry are big-endian.
    pub big_endian: bool,
    /// Entries are compressed.
    pub deflated: bool,
    /// Bytes in front, and whether the offsets count them.
    pub before: usize,
    /// The offsets count the bytes in front.
    pub counted: bool,
    /// A directory without the records of ZIP64.
    pub short: bool,
}

/// An archive as `torch.save` writes it: entries with sizes behind their data, these at multiples of 64 by an extra field, and a
/// directory with the records of ZIP64 behind it.
pub fn archive(entries: &[(String, Vec<u8>)], way: Way) -> Vec<u8> {
    let (mut out, mut directory) = (vec![b'#'; way.before], vec![]);
    let base = if way.counted { 0 } else { way.before };
    for (name, bytes) in entries {
        let at = out.len() - base;
        let packed = match way.deflated {
            true => {
                let mut encoder = flate2::write::DeflateEncoder::new(vec![], flate2::Compression::default());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            false => bytes.clone(),
        };
        let padding = (64 - (out.len() + 30 + name.len() + 4) % 64) % 64;
        let (method, crc) = (if way.deflated { 8u16 } else { 0 }, crc32fast::hash(bytes));
        let common = |sizes: [u32; 3], extra: usize| {
            let mut head = vec![0, 0, 8, 8];
            head.extend(method.to_le_bytes());
            head.extend([0; 4]);
            sizes.iter().for_each(|n| head.extend(n.to_le_bytes()));
            head.extend((name.len() as u16).to_le_bytes());
            head.extend((extra as u16).to_le_bytes());
            head
        };
        out.extend(b"PK\x03\x04");
        out.extend(common([0; 3], padding + 4));
        out.extend(name.as_bytes());
        out.extend(b"FB");
        out.extend((padding as u16).to_le_bytes());
        out.extend(vec![b'Z'; padding]);
        out.extend(&packed);
        let sizes = [crc, packed.len() as u32, bytes.len() as u32];
        out.extend(b"PK\x07\x08");
        sizes.iter().for_each(|n| out.extend(n.to_le_bytes()));
        directory.extend(b"PK\x01\x02\0\0");
        directory.extend(common(sizes, 0));
        directory.extend([0; 10]);
        directory.extend((at as u32).to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, size, count) = (out.len() - base, directory.len(), entries.len());
    out.extend(directory);
    if !way.short {
        let record = out.len() - base;
        out.extend(b"PK\x06\x06");
        out.extend(44u64.to_le_bytes());
        out.extend([0x1e, 3, 0x2d, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        [count, count, size, start].iter().for_each(|&n| out.extend((n as u64).to_le_bytes()));
        out.extend(b"PK\x06\x07\0\0\0\0");
        out.extend((record as u64).to_le_bytes());
        out.extend(1u32.to_le_bytes());
    }
    out.extend(b"PK\x05\x06\0\0\0\0");
    [count, count].iter().for_each(|&n| out.extend((n as u16).to_le_bytes()));
    [size, start].iter().for_each(|&n| out.extend((n as u32).to_le_bytes()));
    out.extend([0, 0]);
    out
}

/// A file of `torch.save`: a value, and its storages by their keys.
pub fn saved(name: &str, value: &Py, storages: &BTreeMap<String, Vec<f32>>, way: Way) -> Vec<u8> {
    let mut program = b"\x80\x02".to_vec();
    pickle(value, &mut program);
    program.push(b'.');
    let order: &[u8] = if way.big_endian { b"big" } else { b"little" };
    let mut entries = vec![(format!("{name}/data.pkl"), program), (format!("{name}/byteorder"), order.to_vec())];
    for (key, values) in storages {
        let bytes = values.iter().flat_map(|x| if way.big_endian { x.to_be_bytes() } else { x.to_le_bytes() });
        entries.push((format!("{name}/data/{key}"), bytes.collect()));
    }
    entries.push((format!("{name}/version"), b"3\n".to_vec()));
    entries.push((format!("{name}/.data/serialization_id"), vec![b'1'; 40]));
    archive(&entries, way)
}
