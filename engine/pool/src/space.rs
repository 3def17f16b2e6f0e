//! The space of all devices of a pool: which one data and pages go to.
//!
//! Data goes to the device with the most room in proportion, so that all fill alike. The second copy of a
//! page goes to another device where there is one with room, else to another extent. Nothing new goes to a
//! device that is being drained.

use crate::allocator::{DeviceSpace, LeafImage, NoSpace, SpaceCounts, StateError};
use crate::layout::{BlockAddress, ExtentId};

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct PoolSpace {
    /// By number of the device.
    devices: Vec<Option<Member>>,
}

#[derive(Debug, Clone)]
struct Member {
    space: DeviceSpace,
    extents: u64,
    draining: bool,
}

impl PoolSpace {
    /// No devices yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a device, or replaces it.
    pub fn insert(&mut self, number: u8, space: DeviceSpace, draining: bool) {
        let at = usize::from(number);
        if self.devices.len() <= at {
            self.devices.resize_with(at + 1, || None);
        }
        let extents = space.extents();
        self.devices[at] = Some(Member {
            space,
            extents,
            draining,
        });
    }

    /// A device has more extents from now on; see [`DeviceSpace::grow`].
    pub fn grow(&mut self, number: u8, extents: u64) {
        if let Some(Some(member)) = self.devices.get_mut(usize::from(number)) {
            member.space.grow(extents);
            member.extents = member.space.extents();
        }
    }

    /// Nothing is on a device any more.
    pub fn remove(&mut self, number: u8) {
        if let Some(member) = self.devices.get_mut(usize::from(number)) {
            *member = None;
        }
    }

    /// Whether a device takes no new data.
    pub fn set_draining(&mut self, number: u8, draining: bool) {
        if let Some(Some(member)) = self.devices.get_mut(usize::from(number)) {
            member.draining = draining;
        }
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.devices.iter().flatten()
    }

    fn open_members(&self) -> impl Iterator<Item = (u8, &Member)> {
        let numbered = (0..).zip(&self.devices);
        numbered.filter_map(|(number, member)| {
            let member = member.as_ref().filter(|member| !member.draining)?;
            Some((number, member))
        })
    }

    /// The space of a device.
    pub fn device(&self, number: u8) -> Option<&DeviceSpace> {
        let member = self.devices.get(usize::from(number))?.as_ref();
        member.map(|member| &member.space)
    }

    /// The space of a device, to be changed.
    pub fn device_mut(&mut self, number: u8) -> Option<&mut DeviceSpace> {
        let member = self.devices.get_mut(usize::from(number))?.as_mut();
        member.map(|member| &mut member.space)
    }

    /// The numbers of the devices.
    pub fn numbers(&self) -> impl Iterator<Item = u8> {
        let numbered = (0..).zip(&self.devices);
        numbered.filter_map(|(number, member)| member.as_ref().map(|_| number))
    }

    fn of(&mut self, extent: ExtentId) -> Result<&mut DeviceSpace, StateError> {
        self.device_mut(extent.device())
            .ok_or(StateError::OutOfRange(extent.number()))
    }

    /// How much of all devices is used, in extents.
    pub fn counts(&self) -> SpaceCounts {
        self.members().fold(SpaceCounts::default(), |sum, member| {
            let counts = member.space.counts();
            SpaceCounts {
                free: sum.free + counts.free,
                freeing: sum.freeing + counts.freeing,
                pages: sum.pages + counts.pages,
            }
        })
    }

    /// Extents of all devices.
    pub fn extents(&self) -> u64 {
        self.members().map(|member| member.extents).sum()
    }

    /// Extents that data can take now.
    pub fn free_extents(&self) -> u64 {
        self.open_members()
            .map(|(_, member)| member.space.free_extents())
            .sum()
    }

    /// Extents that data can take now, or after the next checkpoints, of all devices but one.
    pub fn free_extents_without(&self, number: u8) -> u64 {
        let others = self.open_members().filter(|(other, _)| *other != number);
        let free = others.map(|(_, member)| member.space.free_extents() + member.space.counts().freeing);
        free.sum()
    }

    /// Takes an extent for data; see [`DeviceSpace::take_extent`].
    ///
    /// # Errors
    ///
    /// [`NoSpace`].
    pub fn take_extent(&mut self) -> Result<ExtentId, NoSpace> {
        // In 1/65536 of the device.
        let room = |member: &Member| {
            let free = u128::from(member.space.free_extents()) << 16;
            free / u128::from(member.extents.max(1))
        };
        let best = self.open_members().max_by_key(|(_, member)| room(member));
        let number = best.map(|(number, _)| number).ok_or(NoSpace)?;
        self.device_mut(number).ok_or(NoSpace)?.take_extent()
    }

    /// Takes an extent for data of what is reserved for metadata; see [`DeviceSpace::take_reserved_extent`].
    ///
    /// # Errors
    ///
    /// [`NoSpace`].
    pub fn take_reserved_extent(&mut self) -> Result<ExtentId, NoSpace> {
        let best = self
            .open_members()
            .max_by_key(|(_, member)| member.space.counts().free);
        let number = best.map(|(number, _)| number).ok_or(NoSpace)?;
        self.device_mut(number).ok_or(NoSpace)?.take_reserved_extent()
    }

    /// See [`DeviceSpace::record_extent`].
    pub fn record_extent(&mut self, extent: ExtentId) {
        if let Ok(space) = self.of(extent) {
            space.record_extent(extent);
        }
    }

    /// See [`DeviceSpace::return_extent`].
    pub fn return_extent(&mut self, extent: ExtentId) {
        if let Ok(space) = self.of(extent) {
            space.return_extent(extent);
        }
    }

    /// Takes a block for a page: for its second copy not in the extent of the first, `apart`, and on another
    /// device if one has room.
    ///
    /// # Errors
    ///
    /// [`NoSpace`].
    pub fn take_page(&mut self, apart: Option<ExtentId>) -> Result<BlockAddress, NoSpace> {
        let mut best: Option<(bool, u64, u8)> = None;
        for (number, member) in self.open_members() {
            let other = apart.is_none_or(|extent| extent.device() != number);
            best =
                best.max(Some((other, member.space.free_pages(), number)).filter(|(_, free, _)| *free > 0));
        }
        let (_, _, number) = best.ok_or(NoSpace)?;
        if let Ok(page) = self.device_mut(number).ok_or(NoSpace)?.take_page(apart) {
            return Ok(page);
        }
        // The free blocks of the only one left may be in the extent to stay away from.
        let others: Vec<u8> = self.open_members().map(|(number, _)| number).collect();
        let mut others = others.into_iter().filter(|other| *other != number);
        others
            .find_map(|number| self.device_mut(number)?.take_page(apart).ok())
            .ok_or(NoSpace)
    }

    /// Blocks that can still be taken for pages.
    pub fn free_pages(&self) -> u64 {
        self.open_members()
            .map(|(_, member)| member.space.free_pages())
            .sum()
    }

    /// See [`DeviceSpace::free_extent`].
    ///
    /// # Errors
    ///
    /// [`StateError`].
    pub fn free_extent(&mut self, extent: ExtentId) -> Result<(), StateError> {
        self.of(extent)?.free_extent(extent)
    }

    /// See [`DeviceSpace::free_page`].
    ///
    /// # Errors
    ///
    /// [`StateError`].
    pub fn free_page(&mut self, page: BlockAddress) -> Result<(), StateError> {
        self.of(page.extent())?.free_page(page)
    }

    /// See [`DeviceSpace::mark_extent`].
    ///
    /// # Errors
    ///
    /// [`StateError`].
    pub fn mark_extent(&mut self, extent: ExtentId, again: bool) -> Result<(), StateError> {
        self.of(extent)?.mark_extent(extent, again)
    }

    /// See [`DeviceSpace::adopt_page`].
    ///
    /// # Errors
    ///
    /// [`StateError`].
    pub fn adopt_page(&mut self, page: BlockAddress) -> Result<(), StateError> {
        self.of(page.extent())?.adopt_page(page)
    }

    /// Leaves of the allocation state that have changed, by device, and whose pages may not be changed yet.
    pub fn unprepared_leaves(&self) -> Vec<(u8, u64)> {
        let mut unprepared = Vec::new();
        for (number, member) in (0..).zip(&self.devices) {
            let leaves = member.iter().flat_map(|member| member.space.unprepared_leaves());
            unprepared.extend(leaves.map(|leaf| (number, leaf)));
        }
        unprepared
    }

    /// Whether there are none of those.
    pub fn is_prepared(&self) -> bool {
        self.members()
            .all(|member| member.space.unprepared_leaves().next().is_none())
    }

    /// See [`DeviceSpace::set_prepared`].
    pub fn set_prepared(&mut self, device: u8, leaf: u64) {
        if let Some(space) = self.device_mut(device) {
            space.set_prepared(leaf);
        }
    }

    /// See [`DeviceSpace::closed_image`].
    pub fn closed_image(&mut self, device: u8, leaf: u64) -> Option<LeafImage> {
        self.device_mut(device)?.closed_image(leaf)
    }

    /// Leaves of the allocation state that have changed since the last checkpoint closed.
    pub fn dirty_leaf_count(&self) -> usize {
        self.members().map(|member| member.space.dirty_leaf_count()).sum()
    }

    /// Whether anything was freed that is not free yet.
    pub fn is_freeing(&self) -> bool {
        self.members().any(|member| member.space.is_freeing())
    }

    /// See [`DeviceSpace::close_checkpoint`].
    pub fn close_checkpoint(&mut self) {
        for member in self.devices.iter_mut().flatten() {
            member.space.close_checkpoint();
        }
    }

    /// See [`DeviceSpace::free_closed`].
    pub fn free_closed(&mut self, extents_max: usize) -> bool {
        let mut members = self.devices.iter_mut().flatten();
        members.any(|member| member.space.free_closed(extents_max))
    }
}
