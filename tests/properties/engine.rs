//! An engine's operands are compared with what was prepared, also parameters among them.

use xattn::bridge::{GatedBlockArgs, GatedBlockCall};
use xattn::ops::{Media, Source, Visibility};
use xattn::{Shapes, Tensor, View, ViewMut, Workspace};

use crate::gated_block::{BATCH, MEDIA, PER_MEDIA, ROWS, block, config, weights};
use crate::support::{Lab, labs};

/// What a gated block reads.
struct Read {
    x: Tensor,
    kv: Tensor,
    phi: Tensor,
}

impl Read {
    fn same_media(&self, keys_per_media: usize) -> Visibility<View<'_>> {
        Visibility::SameMedia(self.media(keys_per_media))
    }

    fn media(&self, keys_per_media: usize) -> Media<View<'_>> {
        Media { media_index: self.phi.view(), keys_per_media: keys_per_media as u32, plan: None }
    }

    fn call<'m>(&'m self, visibility: Visibility<View<'m>>, out: ViewMut<'m>) -> GatedBlockArgs<View<'m>, ViewMut<'m>> {
        GatedBlockArgs::new(Source::From(self.x.view()), self.kv.view(), visibility, out)
    }
}

/// The call in place of its text.
fn in_place<'m>(read: &'m Read, out: ViewMut<'m>) -> GatedBlockArgs<View<'m>, ViewMut<'m>> {
    GatedBlockArgs::new(Source::InPlace, read.kv.view(), read.same_media(PER_MEDIA), out)
}

/// Prepares over φ, then enqueues the call that `other` makes: what it says.
fn said(lab: &Lab, other: impl for<'m> Fn(&'m Read, ViewMut<'m>) -> GatedBlockArgs<View<'m>, ViewMut<'m>>) -> String {
    let c = config();
    let block = block(lab, &c, &weights(&c));
    let read = Read {
        x: lab.zeros(&[BATCH, ROWS, c.width]),
        kv: lab.zeros(&[BATCH, MEDIA * PER_MEDIA, c.kv_width()]),
        phi: lab.ints(&[1; BATCH * ROWS], &[BATCH, ROWS]),
    };
    let mut out = lab.zeros(&[BATCH, ROWS, c.width]);
    let shapes = GatedBlockCall::shapes(&read.call(read.same_media(PER_MEDIA), out.view_mut())).unwrap();
    let prepared = block.prepare(shapes).unwrap();
    let mut workspace = Workspace::new(&lab.device, prepared.workspace_bytes()).unwrap();
    let mut recorder = lab.device.recorder().unwrap();
    let result = prepared.enqueue(&mut recorder, other(&read, out.view_mut()), &mut workspace);
    result.map_or_else(|error| error.to_string(), |()| "computed".into())
}

#[test]
fn a_bridge_is_enqueued_with_what_was_prepared() {
    for lab in labs() {
        assert_eq!(said(&lab, |read, out| read.call(read.same_media(PER_MEDIA), out)), "computed");
        assert_eq!(
            said(&lab, |read, out| read.call(Visibility::PrecedingMedia(read.media(PER_MEDIA)), out)),
            "gated_block: visibility: expected same_media as prepared, got preceding_media"
        );
        assert_eq!(
            said(&lab, |read, out| read.call(read.same_media(0), out)),
            "gated_block: keys_per_media: expected 5 as prepared, got 0"
        );
        assert_eq!(said(&lab, in_place), "gated_block: x: expected an operand as prepared, got in place");
    }
}
