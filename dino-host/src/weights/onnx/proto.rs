//! The few bytes of Protocol Buffers that ONNX needs: fields are a key (number and wire type) and a value.

/// A message in the making.
#[derive(Clone, Debug, Default)]
pub struct Message(pub Vec<u8>);

impl Message {
    pub fn new() -> Message {
        Message::default()
    }

    /// Wire type 0.
    pub fn int(mut self, field: u32, value: i64) -> Message {
        varint(&mut self.0, (field as u64) << 3);
        varint(&mut self.0, value as u64);
        self
    }

    /// Wire type 5.
    pub fn float(mut self, field: u32, value: f32) -> Message {
        varint(&mut self.0, (field as u64) << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Wire type 2: text, bytes, a message within.
    pub fn bytes(mut self, field: u32, value: impl AsRef<[u8]>) -> Message {
        self = self.length(field, value.as_ref().len());
        self.0.extend_from_slice(value.as_ref());
        self
    }

    /// What is written before so many bytes that are written by themselves.
    pub fn length(mut self, field: u32, len: usize) -> Message {
        varint(&mut self.0, (field as u64) << 3 | 2);
        varint(&mut self.0, len as u64);
        self
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Seven bits a byte, the least significant first; all but the last have the top bit.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
