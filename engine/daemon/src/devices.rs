//! Every kind of device there is.

use pollux_device::Registry;
use pollux_nvme::initiator::device::NvmfOpener;

/// Opens every kind of device, but for volumes of pools, which need those pools.
pub(crate) fn registry() -> Registry {
    let mut registry = Registry::standard();
    NvmfOpener::register(&mut registry);
    registry
}
