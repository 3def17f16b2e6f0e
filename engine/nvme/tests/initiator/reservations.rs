//! Two hosts and their reservations, over the simulated network.

use pollux_device::{BlockDeviceExt, Device, IoError};
use pollux_nvme::initiator::device::{NvmfDevice, NvmfOptions};
use pollux_nvme::initiator::host::HostIdentity;
use pollux_nvme::wire::command::PersistChange;
use pollux_nvme::wire::reservation::ReservationType as Type;
use uuid::Uuid;

use super::lab::{BLOCK, Lab, buffer, pattern, read};

fn options(lab: &Lab, host: u128) -> NvmfOptions {
    let mut options = lab.nvmf_options("");
    options.host = HostIdentity::from_id(Uuid::from_u128(host));
    options
}

#[test]
fn what_one_host_reserves_the_other_cannot_write_until_it_preempts() {
    let lab = Lab::new(5);
    let (one, two) = (options(&lab, 1), options(&lab, 2));
    lab.world.block_on(lab.host_reactors[0], async move {
        let one = NvmfDevice::open(one).await.unwrap();
        let two = NvmfDevice::open(two).await.unwrap();
        let queues = [&one, &two].map(|device| device.clone().attach());
        let [first, second] = queues;
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        let one = one.reservations().await.unwrap();
        let two = two.reservations().await.unwrap();
        let content = buffer(&pattern(1, BLOCK)).freeze();

        assert_eq!(
            one.acquire(11, Type::WriteExclusive).await,
            Err(IoError::ReservationConflict)
        );
        one.register(11, PersistChange::None).await.unwrap();
        two.register(22, PersistChange::None).await.unwrap();
        let persist = one.register(11, PersistChange::Set).await;
        assert_eq!(persist, Err(IoError::InvalidField), "there is no store");
        one.acquire(11, Type::WriteExclusive).await.unwrap();
        assert_eq!(
            two.acquire(22, Type::WriteExclusive).await,
            Err(IoError::ReservationConflict)
        );
        first.write(0, content.clone(), false).await.unwrap();
        let refused = second.write(0, content.clone(), false).await;
        assert_eq!(refused, Err(IoError::ReservationConflict));
        assert_eq!(second.flush().await, Err(IoError::ReservationConflict));
        assert_eq!(read(&*second, 0, BLOCK).await.unwrap(), &content[..]);

        two.preempt(22, 11, Type::ExclusiveAccess, true).await.unwrap();
        second.write(0, content.clone(), false).await.unwrap();
        assert_eq!(read(&*first, 0, BLOCK).await, Err(IoError::ReservationConflict));
        let report = two.report().await.unwrap();
        assert_eq!(report.reservation, Some(Type::ExclusiveAccess));
        let registrants: Vec<_> = report.registrants.iter().map(|one| (one.host, one.key)).collect();
        assert_eq!(registrants, [(*Uuid::from_u128(2).as_bytes(), 22)]);
        two.replace(Some(22), 33).await.unwrap();
        let wrong = two.release(33, Type::WriteExclusive).await;
        assert_eq!(wrong, Err(IoError::InvalidField));
        two.release(33, Type::ExclusiveAccess).await.unwrap();
        first.write(0, content.clone(), false).await.unwrap();

        one.replace(None, 44).await.unwrap();
        assert_eq!(one.unregister(Some(11)).await, Err(IoError::ReservationConflict));
        two.unregister(None).await.unwrap();
        one.clear(44).await.unwrap();
        assert_eq!(two.report().await.unwrap().registrants, []);
    });
}
