//! Reading and writing the area of one replica.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDevice, BlockDeviceExt, IoError, ZeroOptions};
use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::{buffers, sleep};
use uuid::Uuid;

use super::codec::{self, CodecError, Header, Kind, Label, MAP_BLOCK_REGIONS};
use super::layout::REGION_BLOCKS;
use super::{AreaError, AreaLayout, BLOCK_BYTES, Block, LayoutError};
use crate::membership::{Epoch, Membership};

/// The pause before a device that is short of resources is asked again.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(5);

/// How often it is asked again: five minutes in all.
const SHORTAGES_MAX: u32 = 60_000;

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

/// When a write has to be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durable {
    /// When it is done.
    AtOnce,
    /// With the next flush.
    Later,
}

/// The area of a device, as one of its two writers has it: the host of the replica, or the target.
pub struct Area {
    device: Rc<dyn BlockDevice>,
    /// Blocks of the device in one of 4 KiB.
    ratio: u64,
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
        let area = Self::with_label(device, layout, label, 1)?;
        let options = ZeroOptions {
            force_unit_access: false,
            may_deallocate: false,
        };
        let first = 2 * area.ratio;
        let blocks = (layout.area_blocks() - 2) * area.ratio;
        retried(async || area.device.write_zeroes(first, blocks, options).await).await?;
        let promise = |header: &Header| codec::encode_promise(header, Epoch(0));
        area.write_next(Kind::Promise, Durable::Later, promise).await?;
        for index in 0..layout.used_map_blocks() {
            let empty = |header: &Header| codec::encode_map(header, index, &[]);
            area.write_next(Kind::Map(index), Durable::Later, empty).await?;
        }
        retried(async || area.device.flush().await).await?;
        area.write(layout.block_of(Kind::Label, 1), &label.encode(1), Durable::AtOnce)
            .await?;
        Ok(area)
    }

    /// Finds the area of a device.
    ///
    /// # Errors
    ///
    /// [`AreaError::Missing`] when the device is no replica, and the others.
    pub async fn open(device: Rc<dyn BlockDevice>) -> Result<Self, AreaError> {
        let (layout, label, sequence) = Self::find(&device).await?;
        Ok(Self::with_label(device, layout, label, sequence)?)
    }

    /// The newest label of a device, if it fits.
    async fn find(device: &Rc<dyn BlockDevice>) -> Result<(AreaLayout, Label, u64), AreaError> {
        let blocks = AreaLayout::blocks_of(&device.geometry())?;
        let ratio = AreaLayout::ratio_of(&device.geometry())?;
        if blocks < 2 {
            return Err(LayoutError::TooSmall(blocks).into());
        }
        let mut newest: Option<(Label, u64)> = None;
        let mut failed = None;
        for slot in 0..2 {
            let block = match read(device, ratio, AreaLayout::label_block(slot)).await {
                Ok(block) => block,
                // As after a power cut while the other one, which is newer or all there was, was good.
                Err(error @ (IoError::MediaRead | IoError::ChecksumMismatch)) => {
                    failed = Some(error);
                    continue;
                }
                Err(error) => return Err(error.into()),
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
        match layout.filter(|layout| layout.total_blocks() <= blocks) {
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
        let ratio = AreaLayout::ratio_of(&device.geometry())?;
        for sequence in 0..2 {
            let block = read(device, ratio, AreaLayout::label_block(sequence)).await?;
            if block.iter().any(|&byte| byte != 0) {
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
        let ratio = AreaLayout::ratio_of(&device.geometry())?;
        let zeros = memory_with(&[0; BLOCK_BYTES]);
        for sequence in 0..2 {
            let block = AreaLayout::label_block(sequence) * ratio;
            retried(async || device.write(block, zeros.clone(), true).await).await?;
        }
        Ok(())
    }

    fn with_label(
        device: Rc<dyn BlockDevice>,
        layout: AreaLayout,
        label: Label,
        sequence: u64,
    ) -> Result<Self, LayoutError> {
        Ok(Self {
            ratio: AreaLayout::ratio_of(&device.geometry())?,
            device,
            layout: Cell::new(layout),
            label: Cell::new(label),
            label_sequence: Cell::new(sequence),
            sequences: RefCell::new(vec![0; 2 + layout.used_map_blocks() as usize]),
        })
    }

    /// Takes in what a device has that has become larger: the data reaches to its end from then on. To be
    /// done by the host of the replica.
    ///
    /// # Errors
    ///
    /// [`AreaError`]; it is larger or not then, and it may be tried again.
    pub async fn grow(&self) -> Result<(), AreaError> {
        let blocks = AreaLayout::blocks_of(&self.device.geometry())?;
        let before = self.layout.get();
        let data_blocks = blocks.saturating_sub(before.area_blocks());
        if data_blocks <= before.data_blocks() {
            return Ok(());
        }
        let layout = before.with_data(data_blocks)?;
        self.sequences
            .borrow_mut()
            .resize(2 + layout.used_map_blocks() as usize, 0);
        // What an attempt before left is overwritten; nobody reads these until the label says so.
        for index in before.used_map_blocks()..layout.used_map_blocks() {
            for _ in 0..2 {
                self.write_map_block(index, &[]).await?;
            }
        }
        let label = Label {
            data_blocks,
            ..self.label.get()
        };
        let sequence = self.label_sequence.get().saturating_add(1);
        self.write(
            AreaLayout::label_block(sequence),
            &label.encode(sequence),
            Durable::AtOnce,
        )
        .await?;
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
        let (layout, label, sequence) = Self::find(&self.device).await?;
        let before = self.layout.get();
        if layout.data_blocks() <= before.data_blocks() {
            return Ok(());
        }
        self.sequences
            .borrow_mut()
            .resize(2 + layout.used_map_blocks() as usize, 0);
        for index in before.used_map_blocks()..layout.used_map_blocks() {
            self.newest(Kind::Map(index)).await?;
        }
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
        let layout = self.layout.get();
        let regions = layout.regions() as usize;
        let mut map = Vec::with_capacity(regions);
        for index in 0..layout.used_map_blocks() {
            let block = self.newest(Kind::Map(index)).await?;
            let left = (regions - map.len()).min(MAP_BLOCK_REGIONS);
            map.extend((0..left).map(|region| codec::region_of(&block, region)));
        }
        Ok(map)
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
        let mut newest: Option<(u64, Block)> = None;
        for slot in 0..2 {
            let block = match read(&self.device, self.ratio, self.layout.get().block_of(kind, slot)).await {
                Ok(block) => block,
                // The other slot may be good, and is then at most one write older: as after a power cut.
                Err(IoError::MediaRead | IoError::ChecksumMismatch) => continue,
                Err(error) => return Err(error.into()),
            };
            match codec::check(&block, kind) {
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
        if let Some(known) = self.sequences.borrow_mut().get_mut(Self::sequence_index(kind)) {
            *known = sequence;
        }
        Ok(block)
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
        self.write(
            self.layout.get().block_of(kind, header.sequence),
            &encode(&header),
            durable,
        )
        .await?;
        // Only now: one that failed is tried again in the same slot, and the good one stays.
        if let Some(known) = self.sequences.borrow_mut().get_mut(index) {
            *known = header.sequence;
        }
        Ok(())
    }

    async fn write(&self, block: u64, content: &Block, durable: Durable) -> Result<(), AreaError> {
        let data = memory_with(content);
        let at_once = durable == Durable::AtOnce;
        retried(async || self.device.write(block * self.ratio, data.clone(), at_once).await).await?;
        Ok(())
    }
}

fn memory_with(content: &Block) -> Slice {
    let mut buffer = memory();
    buffer.copy_from_slice(content);
    buffer.freeze()
}

/// Memory for metadata never waits for those who may be waiting for metadata.
fn memory() -> Buffer {
    buffers()
        .allocate(BLOCK_BYTES)
        .unwrap_or_else(|| Buffer::from_heap(BLOCK_BYTES))
}

async fn read(device: &Rc<dyn BlockDevice>, ratio: u64, block: u64) -> Result<Block, IoError> {
    let data = retried(async || device.read(block * ratio, memory()).await).await?;
    data.first_chunk::<BLOCK_BYTES>()
        .copied()
        .ok_or(IoError::Internal)
}

/// Short of resources is not broken.
async fn retried<T>(mut act: impl AsyncFnMut() -> Result<T, IoError>) -> Result<T, IoError> {
    for _ in 0..SHORTAGES_MAX {
        match act().await {
            Err(IoError::ResourceShortage | IoError::NotReady) => sleep(SHORTAGE_PAUSE).await,
            result => return result,
        }
    }
    Err(IoError::ResourceShortage)
}
