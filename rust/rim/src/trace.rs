//! Observers that keep or write down what they see: the groups of a report, and a trace of every step.

use std::io::{self, Write};

use sha2::{Digest, Sha256, Sha512};

use crate::launch::RegionKind;
use crate::observer::{Observer, Operation, Step};
use crate::GRANULE_SIZE;

/// Bytes of each granule's digest that a [`Group`] keeps: enough to tell which granule differs.
pub const PREFIX_SIZE: usize = 8;

/// The operation of a group of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupKind {
    /// RMI_REALM_CREATE.
    Create,
    /// RMI_DATA_CREATE.
    Data,
    /// RMI_RTT_INIT_RIPAS.
    Ripas,
    /// RMI_REC_CREATE.
    Rec,
}

impl GroupKind {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Data => "data",
            Self::Ripas => "ripas",
            Self::Rec => "rec",
        }
    }
}

/// Successive steps of one kind over contiguous addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The operation.
    pub kind: GroupKind,
    /// What the memory holds; None for parameters and vCPUs.
    pub region: Option<RegionKind>,
    /// First address, or the number of a vCPU.
    pub start: u64,
    /// The address behind the last.
    pub top: u64,
    /// How many steps.
    pub steps: u64,
    /// Whether contents were measured, and not only addresses.
    pub measured: bool,
    /// The realm's hash over the content digests of the steps, in order; empty without content.
    pub digest: Vec<u8>,
    /// The RIM after the group.
    pub rim: Vec<u8>,
    /// The first [`PREFIX_SIZE`] bytes of each step's content digest.
    pub granules: Vec<u8>,
}

/// Gathers the groups of a measurement.
#[derive(Default)]
pub struct Groups {
    done: Vec<Group>,
    contents: Option<Contents>,
}

/// The running digest of the content digests of a group.
enum Contents {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Contents {
    fn of(digest_size: usize) -> Self {
        if digest_size == 32 {
            Self::Sha256(Sha256::new())
        } else {
            Self::Sha512(Sha512::new())
        }
    }

    fn update(&mut self, content: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(content),
            Self::Sha512(hash) => hash.update(content),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Sha256(hash) => hash.finalize().to_vec(),
            Self::Sha512(hash) => hash.finalize().to_vec(),
        }
    }
}

/// What a step is to its group.
struct Item<'a> {
    kind: GroupKind,
    region: Option<RegionKind>,
    start: u64,
    top: u64,
    measured: bool,
    content: Option<&'a [u8]>,
}

impl<'a> Item<'a> {
    fn of(operation: &Operation<'a>) -> Self {
        match *operation {
            Operation::Create => Self {
                kind: GroupKind::Create,
                region: None,
                start: 0,
                top: 0,
                measured: true,
                content: None,
            },
            Operation::Data {
                region,
                ipa,
                flags,
                content,
            } => Self {
                kind: GroupKind::Data,
                region: Some(region),
                start: ipa,
                top: ipa.saturating_add(GRANULE_SIZE),
                measured: flags & 1 != 0,
                content: Some(content),
            },
            Operation::Ripas { region, base, top } => Self {
                kind: GroupKind::Ripas,
                region: Some(region),
                start: base,
                top,
                measured: false,
                content: None,
            },
            Operation::Rec { index, content } => Self {
                kind: GroupKind::Rec,
                region: None,
                start: u64::from(index),
                top: u64::from(index),
                measured: true,
                content: Some(content),
            },
        }
    }

    /// Whether this step belongs to the group so far.
    fn continues(&self, group: &Group) -> bool {
        matches!(self.kind, GroupKind::Data | GroupKind::Ripas)
            && (self.kind, self.region, self.measured) == (group.kind, group.region, group.measured)
            && self.start == group.top
    }
}

impl Groups {
    /// The groups in the order of measurement.
    #[must_use]
    pub fn finish(mut self) -> Vec<Group> {
        self.close();
        self.done
    }

    fn close(&mut self) {
        if let (Some(contents), Some(group)) = (self.contents.take(), self.done.last_mut()) {
            group.digest = contents.finish();
        }
    }
}

impl Observer for Groups {
    fn step(&mut self, step: &Step<'_>) {
        let item = Item::of(&step.operation);
        if !self.done.last().is_some_and(|group| item.continues(group)) {
            self.close();
            self.contents = item.content.map(|content| Contents::of(content.len()));
            self.done.push(Group {
                kind: item.kind,
                region: item.region,
                start: item.start,
                top: item.top,
                steps: 0,
                measured: item.measured,
                digest: Vec::new(),
                rim: step.rim.to_vec(),
                granules: Vec::new(),
            });
        }
        let Some(group) = self.done.last_mut() else {
            return;
        };
        group.steps += 1;
        group.top = item.top;
        group.rim.copy_from_slice(step.rim);
        if let (Some(content), Some(hash)) = (item.content, &mut self.contents) {
            hash.update(content);
            group.granules.extend_from_slice(&content[..PREFIX_SIZE]);
        }
    }
}

/// Writes every step as one line of JSON; addresses and digests are hexadecimal strings.
pub struct JsonLines<W> {
    target: W,
    number: u64,
    failed: Option<io::Error>,
}

impl<W: Write> JsonLines<W> {
    /// Write to `target`, which should be buffered.
    pub fn new(target: W) -> Self {
        Self {
            target,
            number: 0,
            failed: None,
        }
    }

    /// Flush.
    ///
    /// # Errors
    /// The first failure of any write.
    pub fn finish(mut self) -> io::Result<()> {
        match self.failed {
            Some(error) => Err(error),
            None => self.target.flush(),
        }
    }

    fn write(&mut self, step: &Step<'_>) -> io::Result<()> {
        let (number, rim) = (self.number, hex::encode(step.rim));
        let operation = match step.operation {
            Operation::Create => r#""operation":"RMI_REALM_CREATE""#.to_owned(),
            Operation::Data {
                region,
                ipa,
                flags,
                content,
            } => format!(
                r#""operation":"RMI_DATA_CREATE","what":"{}","ipa":"{ipa:#x}","flags":{flags},"content":"{}""#,
                region.name(),
                hex::encode(content),
            ),
            Operation::Ripas { region, base, top } => format!(
                r#""operation":"RMI_RTT_INIT_RIPAS","what":"{}","base":"{base:#x}","top":"{top:#x}""#,
                region.name(),
            ),
            Operation::Rec { index, content } => format!(
                r#""operation":"RMI_REC_CREATE","vcpu":{index},"content":"{}""#,
                hex::encode(content),
            ),
        };
        writeln!(
            self.target,
            r#"{{"step":{number},{operation},"rim":"{rim}"}}"#
        )
    }
}

impl<W: Write> Observer for JsonLines<W> {
    fn step(&mut self, step: &Step<'_>) {
        if self.failed.is_none() {
            self.failed = self.write(step).err();
        }
        self.number += 1;
    }
}

/// Two observers at once.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn step(&mut self, step: &Step<'_>) {
        self.0.step(step);
        self.1.step(step);
    }
}

/// An observer that may be absent.
impl<A: Observer> Observer for Option<A> {
    fn step(&mut self, step: &Step<'_>) {
        if let Some(observer) = self {
            observer.step(step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(region: RegionKind, ipa: u64, content: &[u8]) -> Operation<'_> {
        Operation::Data {
            region,
            ipa,
            flags: 1,
            content,
        }
    }

    fn told(observer: &mut dyn Observer) {
        let (first, second) = ([1; 32], [2; 32]);
        for (number, operation) in [
            Operation::Create,
            data(RegionKind::Kernel, 0x1000, &first),
            data(RegionKind::Kernel, 0x2000, &second),
            // The same region again, but not at its end.
            data(RegionKind::Kernel, 0x2000, &second),
            data(RegionKind::DeviceTree, 0x3000, &first),
            Operation::Ripas {
                region: RegionKind::Bss,
                base: 0x4000,
                top: 0x6000,
            },
            Operation::Rec {
                index: 0,
                content: &first,
            },
            Operation::Rec {
                index: 1,
                content: &second,
            },
        ]
        .into_iter()
        .enumerate()
        {
            let rim = [number as u8; 32];
            observer.step(&Step {
                operation,
                rim: &rim,
            });
        }
    }

    #[test]
    fn contiguous_steps_of_one_kind_are_a_group() {
        let mut groups = Groups::default();
        told(&mut groups);
        let groups = groups.finish();
        let shown: Vec<_> = groups
            .iter()
            .map(|group| {
                (
                    group.kind.name(),
                    group.start,
                    group.top,
                    group.steps,
                    group.rim[0],
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("create", 0, 0, 1, 0),
                ("data", 0x1000, 0x3000, 2, 2),
                ("data", 0x2000, 0x3000, 1, 3),
                ("data", 0x3000, 0x4000, 1, 4),
                ("ripas", 0x4000, 0x6000, 1, 5),
                ("rec", 0, 0, 1, 6),
                ("rec", 1, 1, 1, 7),
            ]
        );
        assert_eq!(groups[1].granules, [[1; 8], [2; 8]].concat());
        let both = Sha256::digest([[1; 32], [2; 32]].concat());
        assert_eq!(groups[1].digest, both.to_vec());
        assert!(groups[4].digest.is_empty());
    }

    #[test]
    fn a_trace_has_a_line_per_step() {
        let mut out = Vec::new();
        let mut lines = JsonLines::new(&mut out);
        told(&mut lines);
        lines.finish().unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 8);
        assert!(lines[5].starts_with(
            r#"{"step":5,"operation":"RMI_RTT_INIT_RIPAS","what":"bss","base":"0x4000","top":"0x6000","rim":"0505"#
        ));
    }

    #[test]
    fn a_failed_write_is_reported() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut lines = JsonLines::new(Full);
        told(&mut lines);
        assert_eq!(
            lines.finish().unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
    }
}
