//! Blocks of volumes that no replica in sync can read: people are told, as hosts have to write them anew.

use pollux_api::control::v1::{Severity, UnreadableBlocks};

use super::context::Context;
use super::targets;
use super::volume::Draft;

/// Notes what the target of a volume tells. What it does not know yet stays as another one told it before.
pub(super) fn note(context: &Context<'_>, draft: &mut Draft<'_>) {
    let told = match targets::serves(context, draft.uid(), &draft.status) {
        true => context.unreadable(draft.uid(), &draft.status.target_node),
        false => None,
    };
    if let Some(told) = told {
        let unreadable = Some(told).filter(|told| told.blocks > 0);
        match (unreadable, draft.status.unreadable) {
            (Some(now), None) => draft.events.push((Severity::Error, sentence(now))),
            (None, Some(_)) => {
                let text = "all of its blocks can be read again".to_owned();
                draft.events.push((Severity::Info, text));
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        draft.status.unreadable = unreadable;
    }
    if let Some(now) = draft
        .status
        .unreadable
        .filter(|_| draft.status.message.is_empty())
    {
        draft.status.message = sentence(now);
    }
}

/// What people are told.
fn sentence(unreadable: UnreadableBlocks) -> String {
    let UnreadableBlocks {
        blocks,
        first_offset_bytes,
    } = unreadable;
    let count = match blocks {
        1 => "1 block".to_owned(),
        blocks => format!("{blocks} blocks or more"),
    };
    format!(
        "{count} can be read on no replica in sync, the first one at byte {first_offset_bytes}: replicas \
         stay out of sync until a host has written what cannot be read"
    )
}
