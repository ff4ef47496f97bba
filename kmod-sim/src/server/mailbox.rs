//! The mailbox of a management function: BAR0 takes requests and shows replies, BAR4 the telemetry of all
//! clients. [`npu_uapi::mailbox`] says where.

use super::manage;
use super::message::Refusal;
use super::roster::Roster;
use npu_uapi::mailbox::{
    BAR4_BYTES, MAGIC, MOST_REPLY_BYTES, PAGES, REPLY_AT, REPLY_BYTES, REQUEST_AT, REQUEST_BYTES,
    VERSION, register, state,
};
use npu_uapi::regs::pci::BAR0_BYTES;
use npu_uapi::telemetry::PAGE_BYTES;
use npu_uapi::vfio_user::{MAX_TRANSFER_BYTES, RegionAccess, errno, region};
use std::sync::Arc;

/// The mailbox of one client.
#[derive(Debug)]
pub(crate) struct Mailbox {
    roster: Arc<Roster>,
    request: Vec<u8>,
    reply: Vec<u8>,
    /// Byte of the reply at which its window begins.
    at: u32,
    has_reply: bool,
}

fn index(offset: u32) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl Mailbox {
    pub(crate) fn new(roster: Arc<Roster>) -> Self {
        let request = vec![0; index(REQUEST_BYTES)];
        Self { roster, request, reply: Vec::new(), at: 0, has_reply: false }
    }

    /// Forgets the reply.
    pub(crate) fn reset(&mut self) {
        (self.reply, self.at, self.has_reply) = (Vec::new(), 0, false);
        self.request.fill(0);
    }

    /// Whether the region is the mailbox's to answer for.
    pub(crate) fn has(access: &RegionAccess) -> bool {
        matches!(access.region, region::BAR0 | region::BAR4)
    }

    fn check(access: &RegionAccess) -> Result<(u32, u32), Refusal> {
        let size = if access.region == region::BAR0 { BAR0_BYTES } else { BAR4_BYTES };
        let is_dwords = access.offset.is_multiple_of(4) && access.count.is_multiple_of(4);
        if access.count > MAX_TRANSFER_BYTES || !is_dwords {
            return Err(Refusal::invalid("the mailbox is read and written in words of 32 bits"));
        }
        let start = u32::try_from(access.offset).ok();
        let start = start.filter(|start| start.checked_add(access.count) <= Some(size));
        let start = start.filter(|start| start.checked_add(access.count).is_some());
        start.map(|start| (start, access.count)).ok_or(Refusal::invalid("beyond the region"))
    }

    /// REGION_READ: the bytes.
    pub(crate) fn read(&self, access: &RegionAccess) -> Result<Vec<u8>, Refusal> {
        let (start, count) = Self::check(access)?;
        let words = (start..start + count).step_by(4);
        if access.region == region::BAR0 {
            return Ok(words.flat_map(|at| self.word(at).to_le_bytes()).collect());
        }
        let pages = self.roster.pages();
        let word = |at: u32| {
            pages.get(index(at / PAGE_BYTES)).map_or(0, |page| page.read(at % PAGE_BYTES))
        };
        Ok(words.flat_map(|at| word(at).to_le_bytes()).collect())
    }

    fn word(&self, at: u32) -> u32 {
        let len = u32::try_from(self.reply.len()).unwrap_or(u32::MAX);
        match at {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::STATE if self.has_reply => state::DONE,
            register::STATE => state::IDLE,
            register::REPLY_BYTES => len,
            register::REPLY_AT => self.at,
            register::PAGES => u32::try_from(self.roster.pages().len()).unwrap_or(PAGES).min(PAGES),
            REPLY_AT.. => {
                let start = index((at - REPLY_AT).saturating_add(self.at));
                let bytes = self.reply.get(start..).unwrap_or_default();
                let mut word = [0; 4];
                for (to, from) in word.iter_mut().zip(bytes) {
                    *to = *from;
                }
                u32::from_le_bytes(word)
            }
            _ => 0,
        }
    }

    /// REGION_WRITE of `bytes`, which are as many as `access` says.
    pub(crate) fn write(&mut self, access: &RegionAccess, bytes: &[u8]) -> Result<(), Refusal> {
        let (start, count) = Self::check(access)?;
        if access.region != region::BAR0 {
            return Err(Refusal::new(errno::EACCES, "telemetry can only be read"));
        }
        if index(count) != bytes.len() {
            return Err(Refusal::invalid("the count is not that of the bytes"));
        }
        for (at, word) in (start..).step_by(4).zip(bytes.as_chunks::<4>().0) {
            self.write_word(at, *word)?;
        }
        Ok(())
    }

    fn write_word(&mut self, at: u32, word: [u8; 4]) -> Result<(), Refusal> {
        let value = u32::from_le_bytes(word);
        match at {
            REQUEST_AT..REPLY_AT => {
                let at = index(at - REQUEST_AT);
                if let Some(to) = self.request.get_mut(at..at + 4) {
                    to.copy_from_slice(&word);
                }
            }
            register::REQUEST => {
                let line = self.request.get(..index(value));
                let line = line.ok_or(Refusal::invalid("the request is longer than its window"))?;
                let mut reply = manage::answer(line, &self.roster);
                if reply.len() > index(MOST_REPLY_BYTES) {
                    reply = manage::refusal("the reply is too long; ask for less");
                }
                (self.reply, self.at, self.has_reply) = (reply, 0, true);
            }
            register::REPLY_AT if value.is_multiple_of(4) => self.at = value,
            _ => return Err(Refusal::invalid("there is no such register to write")),
        }
        Ok(())
    }
}

const _: () =
    assert!(REQUEST_AT + REQUEST_BYTES == REPLY_AT && REPLY_AT + REPLY_BYTES == BAR0_BYTES);
