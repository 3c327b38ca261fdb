//! Variants of one launch, measured quickly: the search for what would give a known RIM.
//!
//! The contents are hashed once. A variant that changes only the device tree or the vCPUs takes up
//! the chain where the device tree enters it; one that changes the realm parameters or addresses
//! repeats the chain over digests that are already known.

use std::collections::HashMap;

use crate::launch::{self, Launch, Opened, RegionKind};
use crate::layout::{Layout, Ram};
use crate::observer::{Operation, Step};
use crate::rmm::{rec_page, HashAlgorithm, Page, RealmParams, Rim, FIELD_SIZE};
use crate::{Error, GRANULE_SIZE};

const PAGE: usize = GRANULE_SIZE as usize;
type Field = [u8; FIELD_SIZE];
/// Prefixes of the chain that are kept; one is 64 bytes and its key.
const MAX_PREFIXES: usize = 4096;

/// One launch whose variants are asked for.
pub struct Probe {
    base: Launch,
    base_layout: Layout,
    opened: Opened,
    /// Content digests of the granules of kernel or firmware, and of the initrd.
    main: Vec<Field>,
    initrd: Vec<Field>,
    prefixes: HashMap<Key, Rim>,
    zero: Field,
    vcpu: Field,
}

/// What the chain before the device tree depends on, besides the contents.
#[derive(PartialEq, Eq, Hash)]
struct Key(Vec<u8>, u64, u64, Option<u64>);

impl Probe {
    /// Hash the files of `base`. All variants must have its files and its hash algorithm.
    ///
    /// # Errors
    /// See [`launch::measure`].
    pub fn new(base: Launch) -> Result<Self, Error> {
        let (mut main, mut initrd) = (Vec::new(), Vec::new());
        let mut observer = |step: &Step<'_>| {
            if let Operation::Data {
                region, content, ..
            } = step.operation
            {
                let mut field = [0; FIELD_SIZE];
                field[..content.len()].copy_from_slice(content);
                match region {
                    RegionKind::Kernel | RegionKind::Firmware => main.push(field),
                    RegionKind::Initrd => initrd.push(field),
                    _ => {}
                }
            }
        };
        launch::measure(&base, None, &mut observer)?;
        let opened = Opened::open(&base.boot)?;
        let base_layout = layout_of(&base, &opened)?.0;
        let algorithm = base.params.algorithm;
        Ok(Self {
            base,
            base_layout,
            opened,
            main,
            initrd,
            prefixes: HashMap::new(),
            zero: algorithm.digest(&[0; PAGE]),
            vcpu: algorithm.digest(&rec_page(None)),
        })
    }

    /// The RIM of a variant.
    ///
    /// # Errors
    /// The variant would be refused at launch.
    pub fn rim(&mut self, variant: &Launch) -> Result<Vec<u8>, Error> {
        if variant.boot != self.base.boot {
            return Ok(launch::measure(variant, None, &mut ())?.rim);
        }
        let (layout, initrd) = layout_of(variant, &self.opened)?;
        if !self.is_aligned_with(variant, &layout) {
            return Ok(launch::measure(variant, None, &mut ())?.rim);
        }
        let algorithm = self.base.params.algorithm;
        let device_tree = variant.machine.device_tree(initrd)?.area();
        let mut rim = self.prefix(&variant.params, &layout)?;
        let granules = device_tree.chunks_exact(PAGE);
        for (granule, ipa) in granules.zip((layout.device_tree..).step_by(PAGE)) {
            rim.extend_data(ipa, &self.digest(algorithm, granule));
        }
        let first: Page = rec_page(Some((layout.entry, layout.device_tree)));
        rim.extend_rec(&algorithm.digest(&first));
        for _ in 1..variant.machine.vcpus() {
            rim.extend_rec(&self.vcpu);
        }
        Ok(rim.value().to_vec())
    }

    /// Whether the files stand in the same place of their granules as in the base, and share none.
    fn is_aligned_with(&self, variant: &Launch, layout: &Layout) -> bool {
        let offset = |address: Option<u64>| address.map(|address| address % GRANULE_SIZE);
        let first = |address: u64| address - address % GRANULE_SIZE;
        let main_end = first(layout.entry) + (self.main.len() * PAGE) as u64;
        variant.params.algorithm == self.base.params.algorithm
            && offset(Some(layout.entry)) == offset(Some(self.base_layout.entry))
            && offset(layout.initrd) == offset(self.base_layout.initrd)
            && layout.initrd.is_none_or(|start| main_end <= first(start))
    }

    /// The RIM when everything before the device tree is measured.
    fn prefix(&mut self, params: &RealmParams, layout: &Layout) -> Result<Rim, Error> {
        let page = params.page()?;
        let key = Key(
            page[..64].to_vec(),
            layout.entry,
            layout.memory_size,
            layout.initrd,
        );
        if let Some(rim) = self.prefixes.get(&key) {
            return Ok(rim.clone());
        }
        let mut rim = Rim::of_page(params.algorithm, &page);
        let mut end = extend(&mut rim, layout.entry, &self.main);
        let memory_end = layout
            .entry
            .saturating_add(layout.memory_size)
            .checked_next_multiple_of(GRANULE_SIZE)
            .unwrap_or(end);
        while end < memory_end {
            rim.extend_ripas(end, end + GRANULE_SIZE);
            end += GRANULE_SIZE;
        }
        if let Some(start) = layout.initrd {
            extend(&mut rim, start, &self.initrd);
        }
        if self.prefixes.len() < MAX_PREFIXES {
            self.prefixes.insert(key, rim.clone());
        }
        Ok(rim)
    }

    fn digest(&self, algorithm: HashAlgorithm, granule: &[u8]) -> Field {
        if granule.iter().all(|byte| *byte == 0) {
            self.zero
        } else {
            algorithm.digest(granule)
        }
    }
}

/// Measure granules from that of `address` on; returns the end of the last.
fn extend(rim: &mut Rim, address: u64, contents: &[Field]) -> u64 {
    let mut ipa = address - address % GRANULE_SIZE;
    for content in contents {
        rim.extend_data(ipa, content);
        ipa += GRANULE_SIZE;
    }
    ipa
}

/// Where everything of a launch stands, and the initrd's addresses.
fn layout_of(
    launch: &Launch,
    opened: &Opened,
) -> Result<(Layout, Option<std::ops::Range<u64>>), Error> {
    let ram = Ram::new(launch.machine.ram_base, launch.machine.ram_size)?;
    let layout = opened.layout(&ram, &launch.boot)?;
    let initrd = layout.initrd.zip(opened.initrd.as_ref());
    let range = initrd.map(|(start, file)| start..start + file.size());
    Ok((layout, range))
}
