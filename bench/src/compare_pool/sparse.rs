//! A device of any size in little memory: blocks of data, which all are alike, are not kept.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use pollux_device::{BlockDevice, Completion, Geometry, GeometryError, IoError, Reply, Request};
use pollux_hugepages::Buffer;

const BLOCK: usize = 4096;

/// What a block of data begins with.
const MARK: [u8; 8] = *b"BENCHMRK";

/// Data that is not kept, and is read where nothing else was written.
pub fn fill(buffer: &mut [u8]) {
    for word in buffer.chunks_exact_mut(MARK.len()) {
        word.copy_from_slice(&MARK);
    }
}

/// See the module.
pub struct Sparse {
    geometry: Geometry,
    kept: RefCell<Kept>,
}

struct Kept {
    blocks: HashMap<u64, Box<[u8; BLOCK]>>,
    /// Which blocks are kept, a bit each.
    bits: Vec<u64>,
}

impl Kept {
    fn has(&self, block: u64) -> bool {
        let word = self.bits.get((block / 64) as usize).copied().unwrap_or(0);
        word >> (block % 64) & 1 == 1
    }

    fn set(&mut self, block: u64, kept: bool) {
        if let Some(word) = self.bits.get_mut((block / 64) as usize) {
            *word = *word & !(1 << (block % 64)) | u64::from(kept) << (block % 64);
        }
    }

    fn write(&mut self, block: u64, bytes: &[u8; BLOCK]) {
        if bytes.starts_with(&MARK) {
            if self.has(block) {
                self.blocks.remove(&block);
                self.set(block, false);
            }
            return;
        }
        self.set(block, true);
        match self.blocks.get_mut(&block) {
            Some(kept) => **kept = *bytes,
            None => drop(self.blocks.insert(block, Box::new(*bytes))),
        }
    }

    fn read(&self, block: u64, into: &mut [u8]) {
        match self.blocks.get(&block).filter(|_| self.has(block)) {
            Some(bytes) => into.copy_from_slice(&bytes[..]),
            None => fill(into),
        }
    }
}

impl Sparse {
    /// A device of so many bytes.
    pub fn new(bytes: u64) -> Result<Rc<Self>, GeometryError> {
        let geometry = Geometry::new(bytes, BLOCK as u32)?;
        let words = geometry.blocks.div_ceil(64) as usize;
        Ok(Rc::new(Self {
            geometry,
            kept: RefCell::new(Kept {
                blocks: HashMap::new(),
                bits: vec![0; words],
            }),
        }))
    }

    /// Bytes that are kept.
    pub fn kept_bytes(&self) -> u64 {
        (self.kept.borrow().blocks.len() * BLOCK) as u64
    }

    fn act(&self, request: Request) -> Result<Reply, IoError> {
        let mut kept = self.kept.borrow_mut();
        match request {
            Request::Read { block, mut into } => {
                for (block, bytes) in (block..).zip(into.chunks_exact_mut(BLOCK)) {
                    kept.read(block, bytes);
                }
                Ok(Reply::Data(into))
            }
            Request::Write { block, from, .. } => {
                let mut next = block;
                for piece in from.pieces() {
                    let (blocks, rest) = piece.as_chunks::<BLOCK>();
                    if !rest.is_empty() {
                        // Pieces that are not whole blocks: put together.
                        let mut all = Buffer::from_heap(from.len_bytes());
                        from.copy_to(&mut all);
                        let (blocks, _) = all.as_chunks::<BLOCK>();
                        for (block, bytes) in (block..).zip(blocks) {
                            kept.write(block, bytes);
                        }
                        return Ok(Reply::Done);
                    }
                    for bytes in blocks {
                        kept.write(next, bytes);
                        next += 1;
                    }
                }
                Ok(Reply::Done)
            }
            Request::Flush => Ok(Reply::Done),
            Request::Deallocate { .. } | Request::WriteZeroes { .. } | Request::Compare { .. } => {
                Err(IoError::Unsupported)
            }
        }
    }
}

impl BlockDevice for Sparse {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&self, request: Request) -> Completion {
        if let Err(error) = request.check(&self.geometry) {
            return Completion::failed(error);
        }
        Completion::ready(self.act(request))
    }
}
