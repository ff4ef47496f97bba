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
use std::collections::BTreeMap;
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
    /// Pages of BAR4 as they were when their first word was read, by number.
    taken: BTreeMap<u32, Vec<u32>>,
}

fn index(offset: u32) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl Mailbox {
    pub(crate) fn new(roster: Arc<Roster>) -> Self {
        let request = vec![0; index(REQUEST_BYTES)];
        let (reply, taken) = (Vec::new(), BTreeMap::new());
        Self { roster, request, reply, at: 0, has_reply: false, taken }
    }

    /// Forgets the reply, and what was taken of BAR4.
    pub(crate) fn reset(&mut self) {
        self.taken.clear();
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
    pub(crate) fn read(&mut self, access: &RegionAccess) -> Result<Vec<u8>, Refusal> {
        let (start, count) = Self::check(access)?;
        let words = (start..start + count).step_by(4);
        let word = |at| match access.region {
            region::BAR0 => self.word(at),
            _ => self.telemetry(at),
        };
        Ok(words.map(word).flat_map(u32::to_le_bytes).collect())
    }

    /// The word at byte `at` of BAR4.
    fn telemetry(&mut self, at: u32) -> u32 {
        let (page, at) = (at / PAGE_BYTES, at % PAGE_BYTES);
        if at == 0 {
            let pages = self.roster.pages();
            let words = pages.get(index(page)).map(|page| page.snapshot());
            self.taken.insert(page, words.unwrap_or_default());
        }
        let taken = self.taken.get(&page);
        taken.and_then(|words| words.get(index(at / 4))).copied().unwrap_or(0)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::server::dumps::Dumps;
    use crate::server::roster::Facts;
    use std::time::Instant;

    fn mailbox() -> Mailbox {
        let (config, started) = (Config::default(), Instant::now());
        let facts = Facts { config, max_clients: 1, workers: 1, started };
        Mailbox::new(Arc::new(Roster::new(facts, Dumps::default())))
    }

    fn at(region: u32, offset: u32, count: usize) -> RegionAccess {
        RegionAccess { offset: offset.into(), region, count: u32::try_from(count).unwrap() }
    }

    fn word(mailbox: &mut Mailbox, offset: u32) -> u32 {
        let bytes = mailbox.read(&at(region::BAR0, offset, 4)).unwrap();
        u32::from_le_bytes(bytes.try_into().unwrap())
    }

    fn ask(mailbox: &mut Mailbox, request: &str) -> String {
        let mut bytes = request.as_bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(4), b'!');
        mailbox.write(&at(region::BAR0, REQUEST_AT, bytes.len()), &bytes).unwrap();
        let len = u32::try_from(request.len()).unwrap().to_le_bytes();
        mailbox.write(&at(region::BAR0, register::REQUEST, 4), &len).unwrap();
        assert_eq!(word(mailbox, register::STATE), state::DONE);
        let len = index(word(mailbox, register::REPLY_BYTES));
        let window = at(region::BAR0, REPLY_AT, len.next_multiple_of(4));
        let mut reply = mailbox.read(&window).unwrap();
        reply.truncate(len);
        String::from_utf8(reply).unwrap()
    }

    #[test]
    fn requests_are_answered_as_on_the_socket_until_a_reset_forgets_the_reply() {
        let mut mailbox = mailbox();
        assert_eq!(word(&mut mailbox, register::MAGIC), MAGIC);
        assert_eq!(word(&mut mailbox, register::STATE), state::IDLE);
        let reply = ask(&mut mailbox, r#"{"command":"list"}"#);
        assert_eq!(reply, r#"{"functions":[],"minor":2,"schema":1}"#);
        assert!(ask(&mut mailbox, "garbage").contains("error"));
        mailbox.write(&at(region::BAR0, register::REPLY_AT, 4), &[4, 0, 0, 0]).unwrap();
        let shifted = mailbox.read(&at(region::BAR0, REPLY_AT, 4)).unwrap();
        assert_ne!(shifted, b"{\"er");
        mailbox.reset();
        assert_eq!(
            [register::STATE, register::REPLY_BYTES].map(|at| word(&mut mailbox, at)),
            [0, 0]
        );
    }

    #[test]
    fn accesses_that_make_no_sense_are_refused_and_change_nothing() {
        let mut mailbox = mailbox();
        let bytes = [0xff; 8];
        for (region, offset, count) in [
            (region::BAR0, 2, 4),
            (region::BAR0, 0, 3),
            (region::BAR0, BAR0_BYTES, 4),
            (region::BAR0, u32::MAX - 3, 4),
            (region::BAR4, BAR4_BYTES - 4, 8),
        ] {
            assert!(mailbox.read(&at(region, offset, count)).is_err(), "{offset:#x}");
            assert!(mailbox.write(&at(region, offset, count), &bytes[..count]).is_err());
        }
        let words = at(region::BAR4, 0, 4);
        assert_eq!(mailbox.read(&words).unwrap(), [0; 4], "nobody is here");
        assert_eq!(mailbox.write(&words, &bytes[..4]).unwrap_err().errno, errno::EACCES);
        for register in [register::MAGIC, register::STATE, register::REQUEST, REPLY_AT] {
            let refused = mailbox.write(&at(region::BAR0, register, 4), &bytes[..4]);
            assert!(refused.is_err(), "{register:#x}");
        }
        assert_eq!(word(&mut mailbox, register::STATE), state::IDLE);
    }
}
