//! A walk over the coded data of a JPEG, which finds whether all of it is there: no coefficient is kept, only which are not zero, for
//! later scans of a progressive file are read by that. ITU-T T.81, annexes F and G.

use super::{Frame, SCAN, Scan, Segment, segments};

/// Files without an end mark that end in this many zeros were never written to their end: the zeros are the disk's.
const ZEROS: usize = 8;

/// Whether every scan's data is there, and, of a progressive file, every scan. For files whose end mark is missing.
pub(crate) fn complete(bytes: &[u8], frame: &Frame) -> bool {
    !bytes.ends_with(&[0; ZEROS]) && walk(bytes, frame).is_some()
}

/// `None` where something is missing, or is not as it must be.
fn walk(bytes: &[u8], frame: &Frame) -> Option<()> {
    if frame.components.iter().any(|c| !(1..=4).contains(&c.across) || !(1..=4).contains(&c.down)) {
        return None;
    }
    let (across, down) = frame.most();
    let across_units = usize::from(frame.width).div_ceil(8 * usize::from(across));
    let down_units = usize::from(frame.height).div_ceil(8 * usize::from(down));
    let progressive = frame.code == 0xc2;
    let mut planes: Vec<Plane> = frame
        .components
        .iter()
        .map(|c| {
            let (h, v) = (usize::from(c.across), usize::from(c.down));
            let part = |length: u16, of: usize, most: u8| (usize::from(length) * of).div_ceil(8 * usize::from(most));
            let stride = across_units * h;
            let blocks = if progressive { stride * down_units * v } else { 0 };
            Plane {
                unit: (h, v),
                size: (part(frame.width, h, across), part(frame.height, v, down)),
                stride,
                set: vec![0; blocks],
                open: [u8::MAX; 64],
            }
        })
        .collect();
    let (mut tables, mut interval) = ([const { None }; 8], 0);
    for Segment { code, body, end } in segments(bytes) {
        match code {
            0xc4 => Table::read_all(body, &mut tables)?,
            0xdd => interval = usize::from(u16::from_be_bytes(*body.first_chunk()?)),
            SCAN => {
                let scan = Scan::read(body, frame)?;
                let last = if progressive { scan.last.min(63) } else { 63 };
                let mut coded = Coded {
                    bits: Bits { bytes, at: end, byte: 0, left: 0 },
                    scan: &scan,
                    tables: &tables,
                    run: 0,
                    last,
                };
                let alone = scan.components.len() == 1;
                let (wide, high) = if alone { planes[scan.components[0].0].size } else { (across_units, down_units) };
                for unit in 0..wide * high {
                    if interval > 0 && unit > 0 && unit % interval == 0 {
                        coded.bits.restart()?;
                        coded.run = 0;
                    }
                    let (x, y) = (unit % wide, unit / wide);
                    for &(i, dc, ac) in &scan.components {
                        let plane = &mut planes[i];
                        let (h, v) = if alone { (1, 1) } else { plane.unit };
                        for (row, column) in (0..v).flat_map(|row| (0..h).map(move |column| (row, column))) {
                            if progressive {
                                let block = (y * v + row) * plane.stride + x * h + column;
                                coded.progressive(dc, ac, plane.set.get_mut(block)?)?;
                            } else {
                                coded.sequential(dc, ac)?;
                            }
                        }
                    }
                }
                for &(i, ..) in &scan.components {
                    let bit = if progressive { scan.bit } else { 0 };
                    planes[i].open.get_mut(usize::from(scan.first)..=usize::from(last))?.fill(bit);
                }
            }
            _ => {}
        }
    }
    planes.iter().all(|plane| plane.open == [0; 64]).then_some(())
}

/// A component's blocks.
struct Plane {
    /// Blocks of it in a unit of several components, across and down.
    unit: (usize, usize),
    /// Blocks of it in a scan of its own.
    size: (usize, usize),
    /// Blocks in a row of `set`.
    stride: usize,
    /// Of every block, the coefficients that are not zero so far.
    set: Vec<u64>,
    /// Of every coefficient, the lowest bit that was sent; 0 when it is all there.
    open: [u8; 64],
}

/// A Huffman code: of every length 1 to 16 how many codes it has, and the symbols in their order.
struct Table {
    counts: [u8; 16],
    symbols: Vec<u8>,
}

impl Table {
    /// The tables of a segment by destination: 0 to 3 for first coefficients, 4 to 7 for the others.
    fn read_all(mut body: &[u8], tables: &mut [Option<Table>; 8]) -> Option<()> {
        while let Some((&byte, rest)) = body.split_first() {
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let (symbols, rest) = rest.split_at_checked(counts.iter().map(|n| usize::from(*n)).sum())?;
            let slot = usize::from(byte >> 4) * 4 + usize::from(byte & 15);
            *tables.get_mut(slot)? = Some(Table { counts: *counts, symbols: symbols.to_vec() });
            body = rest;
        }
        Some(())
    }
}

/// The bits of a scan up to its next marker.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    byte: u8,
    left: u8,
}

impl Bits<'_> {
    /// The next bit; `None` at a marker and where the file ends.
    fn bit(&mut self) -> Option<u32> {
        if self.left == 0 {
            self.byte = *self.bytes.get(self.at)?;
            self.at += match (self.byte, self.bytes.get(self.at + 1)) {
                (0xff, Some(0)) => 2, // the zero is no data
                (0xff, _) => return None,
                _ => 1,
            };
            self.left = 8;
        }
        self.left -= 1;
        Some(u32::from(self.byte >> self.left & 1))
    }

    fn number(&mut self, bits: u8) -> Option<u32> {
        (0..bits).try_fold(0, |number: u32, _| Some(number << 1 | self.bit()?))
    }

    /// Past the restart marker that must come now.
    fn restart(&mut self) -> Option<()> {
        self.left = 0;
        while self.bytes.get(self.at..self.at + 2)? == [0xff; 2] {
            self.at += 1;
        }
        let marker = self.bytes.get(self.at..self.at + 2)?;
        self.at += 2;
        (marker[0] == 0xff && (0xd0..=0xd7).contains(&marker[1])).then_some(())
    }

    fn symbol(&mut self, table: Option<&Table>) -> Option<u8> {
        let table = table?;
        let (mut code, mut first, mut before) = (0, 0, 0);
        for &count in &table.counts {
            code = code << 1 | self.bit()?;
            first <<= 1;
            if code < first + u32::from(count) {
                return table.symbols.get(before + code.checked_sub(first)? as usize).copied();
            }
            first += u32::from(count);
            before += usize::from(count);
        }
        None
    }
}

/// A scan on the way through its blocks.
struct Coded<'a> {
    bits: Bits<'a>,
    scan: &'a Scan,
    tables: &'a [Option<Table>; 8],
    /// Blocks to come that have no new coefficient.
    run: u32,
    /// The last coefficient, at most 63.
    last: u8,
}

impl Coded<'_> {
    fn first_symbol(&mut self, table: u8) -> Option<u8> {
        self.bits.symbol(self.tables.get(usize::from(table)).filter(|_| table < 4)?.as_ref())
    }

    /// The zeros before a coefficient and its size in bits.
    fn pair(&mut self, table: u8) -> Option<(u8, u8)> {
        let both = self.bits.symbol(self.tables.get(4 + usize::from(table))?.as_ref())?;
        Some((both >> 4, both & 15))
    }

    fn sequential(&mut self, dc: u8, ac: u8) -> Option<()> {
        let size = self.first_symbol(dc)?;
        self.bits.number(size.min(16))?;
        let mut k = 1;
        while k < 64 {
            let (zeros, size) = self.pair(ac)?;
            match (zeros, size) {
                (15, 0) => k += 16,
                (_, 0) => break,
                _ => {
                    self.bits.number(size)?;
                    k += zeros + 1;
                }
            }
        }
        (k <= 64).then_some(())
    }

    /// `set`: the block's coefficients that are not zero.
    fn progressive(&mut self, dc: u8, ac: u8, set: &mut u64) -> Option<()> {
        match (self.scan.first, self.scan.before) {
            (0, 0) => {
                let size = self.first_symbol(dc)?;
                self.bits.number(size.min(16))?;
            }
            (0, _) => {
                self.bits.bit()?;
            }
            (first, 0) if self.run == 0 => {
                let mut k = first;
                while k <= self.last {
                    let (zeros, size) = self.pair(ac)?;
                    match (zeros, size) {
                        (15, 0) => k += 16,
                        (_, 0) => {
                            self.run = (1 << zeros) + self.bits.number(zeros)? - 1;
                            break;
                        }
                        _ => {
                            k += zeros;
                            self.bits.number(size)?;
                            *set |= 1_u64.checked_shl(k.into())?;
                            k += 1;
                        }
                    }
                }
            }
            (_, 0) => self.run -= 1,
            (first, _) => self.refine(first, ac, set)?,
        }
        Some(())
    }

    /// One bit more of every coefficient that is not zero, among which new ones appear.
    fn refine(&mut self, first: u8, ac: u8, set: &mut u64) -> Option<()> {
        let mut k = first;
        while self.run == 0 && k <= self.last {
            let (mut zeros, size) = self.pair(ac)?;
            if size == 0 && zeros < 15 {
                self.run = (1 << zeros) + self.bits.number(zeros)?;
                break;
            }
            self.bits.number(size)?; // the sign
            while k <= self.last {
                if *set >> k & 1 == 1 {
                    self.bits.bit()?;
                } else if zeros == 0 {
                    if size != 0 {
                        *set |= 1 << k;
                    }
                    k += 1;
                    break;
                } else {
                    zeros -= 1;
                }
                k += 1;
            }
        }
        if self.run > 0 {
            while k <= self.last {
                if *set >> k & 1 == 1 {
                    self.bits.bit()?;
                }
                k += 1;
            }
            self.run -= 1;
        }
        Some(())
    }
}
