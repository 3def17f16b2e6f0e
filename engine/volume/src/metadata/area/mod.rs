//! Reading and writing the area of one replica.

mod blocks;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use futures_util::{StreamExt, TryStreamExt, stream};
use pollux_device::{BlockDevice, IoError};
use uuid::Uuid;

use self::blocks::{Blocks, Durable};
use super::codec::{self, CodecError, Header, Kind, Label, MAP_BLOCK_REGIONS};
use super::layout::REGION_BLOCKS;
use super::{AreaError, AreaLayout, BLOCK_BYTES, Block, LayoutError};
use crate::membership::{Epoch, Membership};

/// Runs of blocks of the region map that are read side by side. The map of 16 TiB is 32 MiB on the device,
/// and whoever takes a volume over waits for it.
const MAP_READS: usize = 8;

/// Blocks of the region map, in both slots, of one part of it.
const MAP_PART_BLOCKS: u64 = 512;

/// How a device is made a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormatOptions {
    /// The volume.
    pub volume: Uuid,
    /// The name of the replica.
    pub replica: Uuid,
    /// Blocks of 4 KiB in a region, a power of two.
    pub region_blocks: u64,
}

impl FormatOptions {
    /// With regions of 1 MiB.
    pub fn new(volume: Uuid, replica: Uuid) -> Self {
        Self {
            volume,
            replica,
            region_blocks: REGION_BLOCKS,
        }
    }
}

/// The area of a device, as one of its two writers has it: the host of the replica, or the target.
pub struct Area {
    blocks: Blocks,
    layout: Cell<AreaLayout>,
    label: Cell<Label>,
    label_sequence: Cell<u64>,
    /// The newest sequence of the promise, the record and the map blocks, in this order; 0 for not known.
    sequences: RefCell<Vec<u64>>,
}

impl Area {
    /// Makes a device a replica of a volume. Whatever it was before is lost, and nothing of its data counts.
    ///
    /// # Errors
    ///
    /// [`AreaError`].
    pub async fn format(device: Rc<dyn BlockDevice>, options: &FormatOptions) -> Result<Self, AreaError> {
        let geometry = device.geometry();
        let layout = AreaLayout::new(AreaLayout::blocks_of(&geometry)?, options.region_blocks)?;
        // The label goes first and comes last: a power cut in between leaves a device without one.
        if !Self::is_blank(&device).await? {
            Self::wipe(device.clone()).await?;
        }
        Self::format_as(device, layout, options).await
    }

    /// Makes a device that is a copy of a replica another replica: data stays where it is, and nothing was
    /// promised or missed yet.
    ///
    /// # Errors
    ///
    /// [`AreaError`]; the device may be no replica any more then.
    pub async fn format_copy(device: Rc<dyn BlockDevice>, options: &FormatOptions) -> Result<(), AreaError> {
        let layout = Self::open(device.clone()).await?.layout();
        let options = FormatOptions {
            region_blocks: layout.region_blocks(),
            ..*options
        };
        Self::wipe(device.clone()).await?;
        Self::format_as(device, layout, &options).await.map(drop)
    }

    /// Makes a blank device a replica: everything is made durable together, and then the label.
    async fn format_as(
        device: Rc<dyn BlockDevice>,
        layout: AreaLayout,
        options: &FormatOptions,
    ) -> Result<Self, AreaError> {
        let label = Label {
            volume: options.volume,
            replica: options.replica,
            data_blocks: layout.data_blocks(),
            region_blocks: options.region_blocks,
            map_blocks: layout.map_blocks(),
        };
        let area = Self::with_label(Blocks::new(device)?, layout, label, 1);
        // The map that is not used yet is written when the replica grows.
        let first_of_map = layout.block_of(Kind::Map(0), 0);
        area.blocks.clear(2, first_of_map - 2).await?;
        let promise = |header: &Header| codec::encode_promise(header, Epoch(0));
        area.write_next(Kind::Promise, Durable::Later, promise).await?;
        area.write_empty_map(0..layout.used_map_blocks(), Durable::Later)
            .await?;
        area.blocks.flush().await?;
        area.write_label(&label, 1).await?;
        Ok(area)
    }

    /// Finds the area of a device.
    ///
    /// # Errors
    ///
    /// [`AreaError::Missing`] when the device is no replica, and the others.
    pub async fn open(device: Rc<dyn BlockDevice>) -> Result<Self, AreaError> {
        let blocks = Blocks::new(device)?;
        let (layout, label, sequence) = Self::find(&blocks).await?;
        Ok(Self::with_label(blocks, layout, label, sequence))
    }

    /// The newest label of a device, if it fits.
    async fn find(blocks: &Blocks) -> Result<(AreaLayout, Label, u64), AreaError> {
        let count = blocks.count();
        if count < 2 {
            return Err(LayoutError::TooSmall(count).into());
        }
        let mut newest: Option<(Label, u64)> = None;
        let mut failed = None;
        for (slot, block) in (0..).zip(blocks.read(AreaLayout::label_block(0), 2).await?) {
            let block = match block {
                Ok(block) => block,
                // As after a power cut while the other one, which is newer or all there was, was good.
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
            };
            match Label::decode(&block) {
                Ok(found) if found.1 % 2 == slot && newest.is_none_or(|(_, newest)| newest < found.1) => {
                    newest = Some(found);
                }
                // Not to be touched, whatever the other slot says.
                Err(error @ (CodecError::Features(_) | CodecError::Version { .. })) => {
                    return Err(error.into());
                }
                Ok(_) | Err(_) => {}
            }
        }
        let (label, sequence) = match (newest, failed) {
            (Some(found), _) => found,
            (None, Some(error)) => return Err(error.into()),
            (None, None) => return Err(AreaError::Missing(Kind::Label.name())),
        };
        let layout = AreaLayout::of(&label);
        match layout.filter(|layout| layout.total_blocks() <= count) {
            Some(layout) => Ok((layout, label, sequence)),
            None => {
                let (structure, field) = (Kind::Label.name(), "size");
                Err(CodecError::Field { structure, field }.into())
            }
        }
    }

    /// Whether a device was never made a replica to the end: both places of the label are zeros, as on a new
    /// volume, or on one whose format was interrupted. A label that was damaged is not zeros.
    ///
    /// # Errors
    ///
    /// [`AreaError`].
    pub async fn is_blank(device: &Rc<dyn BlockDevice>) -> Result<bool, AreaError> {
        let labels = Blocks::new(device.clone())?
            .read(AreaLayout::label_block(0), 2)
            .await?;
        for label in labels {
            if label?.iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes a device blank: it is no replica any more. Whatever is at the place of a label is lost.
    ///
    /// # Errors
    ///
    /// [`AreaError`]; it may be a replica still then.
    pub async fn wipe(device: Rc<dyn BlockDevice>) -> Result<(), AreaError> {
        let blocks = Blocks::new(device)?;
        for slot in 0..2 {
            let zeros = [[0; BLOCK_BYTES]];
            blocks
                .write(AreaLayout::label_block(slot), &zeros, Durable::AtOnce)
                .await?;
        }
        Ok(())
    }

    fn with_label(blocks: Blocks, layout: AreaLayout, label: Label, sequence: u64) -> Self {
        Self {
            blocks,
            layout: Cell::new(layout),
            label: Cell::new(label),
            label_sequence: Cell::new(sequence),
            sequences: RefCell::new(vec![0; 2 + layout.used_map_blocks() as usize]),
        }
    }

    async fn write_label(&self, label: &Label, sequence: u64) -> Result<(), IoError> {
        let block = AreaLayout::label_block(sequence);
        self.blocks
            .write(block, &[label.encode(sequence)], Durable::AtOnce)
            .await
    }

    /// Makes blocks of the region map that say nothing, in both slots, whatever was there.
    async fn write_empty_map(&self, indexes: Range<u64>, durable: Durable) -> Result<(), IoError> {
        let label = self.label.get();
        let encode = |index, sequence| {
            let header = Header {
                volume: label.volume,
                replica: label.replica,
                sequence,
            };
            codec::encode_map(&header, index, &[])
        };
        let per_run = self.blocks.run_max().div_ceil(2);
        let mut first = indexes.start;
        while first < indexes.end {
            let end = (first + per_run).min(indexes.end);
            let run: Vec<Block> = (first..end)
                .flat_map(|index| [encode(index, 2), encode(index, 1)])
                .collect();
            let block = self.layout.get().block_of(Kind::Map(first), 0);
            self.blocks.write(block, &run, durable).await?;
            for index in first..end {
                self.know(Kind::Map(index), 2);
            }
            first = end;
        }
        Ok(())
    }

    /// Takes in what a device has that has become larger: the data reaches to its end from then on. To be
    /// done by the host of the replica.
    ///
    /// # Errors
    ///
    /// [`AreaError`]; it is larger or not then, and it may be tried again.
    pub async fn grow(&self) -> Result<(), AreaError> {
        let before = self.layout.get();
        let data_blocks = self.blocks.count().saturating_sub(before.area_blocks());
        if data_blocks <= before.data_blocks() {
            return Ok(());
        }
        let layout = before.with_data(data_blocks)?;
        self.sequences
            .borrow_mut()
            .resize(2 + layout.used_map_blocks() as usize, 0);
        // What an attempt before left is overwritten; nobody reads these until the label says so.
        let new = before.used_map_blocks()..layout.used_map_blocks();
        self.write_empty_map(new, Durable::AtOnce).await?;
        let label = Label {
            data_blocks,
            ..self.label.get()
        };
        let sequence = self.label_sequence.get().saturating_add(1);
        self.write_label(&label, sequence).await?;
        self.label_sequence.set(sequence);
        self.label.set(label);
        self.layout.set(layout);
        Ok(())
    }

    /// Takes note that the replica has become larger, and of what its region map has in the new blocks. For
    /// the target.
    ///
    /// # Errors
    ///
    /// [`AreaError`].
    pub async fn refresh(&self) -> Result<(), AreaError> {
        let (layout, label, sequence) = Self::find(&self.blocks).await?;
        let before = self.layout.get();
        if layout.data_blocks() <= before.data_blocks() {
            return Ok(());
        }
        self.sequences
            .borrow_mut()
            .resize(2 + layout.used_map_blocks() as usize, 0);
        self.read_map_blocks(before.used_map_blocks()..layout.used_map_blocks())
            .await?;
        self.label_sequence.set(sequence);
        self.label.set(label);
        self.layout.set(layout);
        Ok(())
    }

    /// Which replica this is.
    pub fn label(&self) -> Label {
        self.label.get()
    }

    /// Where everything is.
    pub fn layout(&self) -> AreaLayout {
        self.layout.get()
    }

    /// The newest epoch that was promised.
    ///
    /// # Errors
    ///
    /// [`AreaError`].
    pub async fn read_promise(&self) -> Result<Epoch, AreaError> {
        let block = self.newest(Kind::Promise).await?;
        Ok(codec::promise_of(&block))
    }

    /// Makes a promise durable.
    ///
    /// # Errors
    ///
    /// [`AreaError`]; it is durable or not then.
    pub async fn write_promise(&self, epoch: Epoch) -> Result<(), AreaError> {
        self.write_next(Kind::Promise, Durable::AtOnce, |header| {
            codec::encode_promise(header, epoch)
        })
        .await
    }

    /// The copy of the record; `None` when there was none yet.
    ///
    /// # Errors
    ///
    /// [`AreaError`].
    pub async fn read_record(&self) -> Result<Option<Membership>, AreaError> {
        match self.newest(Kind::Record).await {
            Ok(block) => Ok(Some(codec::record_of(&block)?)),
            Err(AreaError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a copy of the record durable. What is there has to have been read before.
    ///
    /// # Errors
    ///
    /// [`AreaError`]; it is durable or not then.
    pub async fn write_record(&self, record: &Membership) -> Result<(), AreaError> {
        self.write_next(Kind::Record, Durable::AtOnce, |header| {
            codec::encode_record(header, record)
        })
        .await
    }

    /// The region map: a byte for each region.
    ///
    /// # Errors
    ///
    /// [`AreaError`].
    pub async fn read_map(&self) -> Result<Vec<u8>, AreaError> {
        let mut map = Vec::new();
        while self.read_map_part(&mut map).await? {}
        Ok(map)
    }

    /// Reads what comes next in the region map, up to 4 MiB of the device, and adds it to what was read
    /// before: for those who wait for as long as it goes on. Whether there is more.
    ///
    /// # Errors
    ///
    /// [`AreaError`].
    pub async fn read_map_part(&self, map: &mut Vec<u8>) -> Result<bool, AreaError> {
        let layout = self.layout.get();
        let regions = layout.regions() as usize;
        let first = (map.len() / MAP_BLOCK_REGIONS) as u64;
        let end = (first + MAP_PART_BLOCKS).min(layout.used_map_blocks());
        for block in &self.read_map_blocks(first..end).await? {
            let left = regions.saturating_sub(map.len()).min(MAP_BLOCK_REGIONS);
            map.extend((0..left).map(|region| codec::region_of(block, region)));
        }
        Ok(map.len() < regions)
    }

    /// Blocks of the region map, as they are now.
    async fn read_map_blocks(&self, indexes: Range<u64>) -> Result<Vec<Block>, AreaError> {
        let per_run = self.blocks.run_max().div_ceil(2);
        let runs = indexes
            .clone()
            .step_by(per_run as usize)
            .map(|first| self.read_map_run(first..(first + per_run).min(indexes.end)));
        stream::iter(runs).buffered(MAP_READS).try_concat().await
    }

    async fn read_map_run(&self, indexes: Range<u64>) -> Result<Vec<Block>, AreaError> {
        let first = self.layout.get().block_of(Kind::Map(indexes.start), 0);
        let count = 2 * (indexes.end - indexes.start);
        let slots = self.blocks.read(first, count).await?;
        indexes
            .zip(slots.chunks(2))
            .map(|(index, slots)| self.newest_of(Kind::Map(index), slots))
            .collect()
    }

    /// Makes a block of the region map durable; regions that are left out are zeros. The map has to have been
    /// read before.
    ///
    /// # Errors
    ///
    /// [`AreaError`]; it is durable or not then.
    pub async fn write_map_block(&self, index: u64, regions: &[u8]) -> Result<(), AreaError> {
        self.write_next(Kind::Map(index), Durable::AtOnce, |header| {
            codec::encode_map(header, index, regions)
        })
        .await
    }

    fn sequence_index(kind: Kind) -> usize {
        match kind {
            Kind::Label | Kind::Promise => 0,
            Kind::Record => 1,
            Kind::Map(index) => usize::try_from(index).unwrap_or(usize::MAX).saturating_add(2),
        }
    }

    /// The newest good content of a structure.
    async fn newest(&self, kind: Kind) -> Result<Block, AreaError> {
        let slots = self.blocks.read(self.layout.get().block_of(kind, 0), 2).await?;
        self.newest_of(kind, &slots)
    }

    /// The newest good content of a structure, of what is in its slots.
    fn newest_of(&self, kind: Kind, slots: &[Result<Block, IoError>]) -> Result<Block, AreaError> {
        let mut newest: Option<(u64, &Block)> = None;
        for (slot, block) in (0..).zip(slots) {
            // If it cannot be read, the other slot may be good, and is then at most one write older: as after
            // a power cut.
            let Ok(block) = block else { continue };
            match codec::check(block, kind) {
                Ok(header)
                    if header.volume == self.label.get().volume
                        && header.replica == self.label.get().replica
                        && header.sequence % 2 == slot
                        && newest.is_none_or(|(sequence, _)| sequence < header.sequence) =>
                {
                    newest = Some((header.sequence, block));
                }
                Err(error @ CodecError::Version { .. }) => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
        let (sequence, block) = newest.ok_or(AreaError::Missing(kind.name()))?;
        self.know(kind, sequence);
        Ok(*block)
    }

    /// Takes note of the newest sequence of a structure.
    fn know(&self, kind: Kind, sequence: u64) {
        if let Some(known) = self.sequences.borrow_mut().get_mut(Self::sequence_index(kind)) {
            *known = sequence;
        }
    }

    async fn write_next(
        &self,
        kind: Kind,
        durable: Durable,
        encode: impl Fn(&Header) -> Block,
    ) -> Result<(), AreaError> {
        let index = Self::sequence_index(kind);
        let before = self.sequences.borrow().get(index).copied();
        let before = before.ok_or(AreaError::Missing(kind.name()))?;
        let header = Header {
            volume: self.label.get().volume,
            replica: self.label.get().replica,
            sequence: before.saturating_add(1),
        };
        let block = self.layout.get().block_of(kind, header.sequence);
        self.blocks.write(block, &[encode(&header)], durable).await?;
        // Only now: one that failed is tried again in the same slot, and the good one stays.
        self.know(kind, header.sequence);
        Ok(())
    }
}
