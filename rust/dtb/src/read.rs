//! Reading a flattened device tree, written by whatever VMM, for reports and comparisons.
//!
//! The blob is untrusted: every offset is checked, depth and size are bounded, nothing is assumed
//! about the order of its blocks. Nodes come in document order with their depth, so that no
//! recursion depends on the input.
//!
//! Source: Devicetree Specification v0.4, chapter 5 (versions 16 and 17 of the format).

use std::fmt;

/// Deepest nesting that is read; the trees of virtual machines have four levels.
pub const MAX_DEPTH: usize = 32;
/// Largest blob that is read, in bytes: what an arm64 kernel maps for its device tree.
pub const MAX_SIZE: usize = 2 << 20;

const MAGIC: u32 = 0xd00d_feed;
const HEADER_SIZE: usize = 40;
const FIRST_VERSION: u32 = 16;
const VERSION: u32 = 17;

const TOKEN_BEGIN_NODE: u32 = 1;
const TOKEN_END_NODE: u32 = 2;
const TOKEN_PROPERTY: u32 = 3;
const TOKEN_NOP: u32 = 4;
const TOKEN_END: u32 = 9;

/// Why a blob is no device tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadError {
    /// Where in the blob, in bytes.
    pub offset: usize,
    /// What is wrong there.
    pub problem: &'static str,
}

impl fmt::Display for ReadError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "not a device tree: {} (at byte {})",
            self.problem, self.offset
        )
    }
}

impl std::error::Error for ReadError {}

/// One property; its meaning is the reader's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// Its name.
    pub name: String,
    /// Its value.
    pub data: Vec<u8>,
}

/// One node, without its children: they follow it with a greater depth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// 0 for the root.
    pub depth: usize,
    /// With its unit address; empty for the root.
    pub name: String,
    /// In order.
    pub properties: Vec<Property>,
}

/// A whole tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Bytes of the blob, as its header says.
    pub total_size: usize,
    /// Reserved memory: address and bytes.
    pub reservations: Vec<(u64, u64)>,
    /// All nodes in document order; the first is the root.
    pub nodes: Vec<Node>,
}

/// Read the blob at the start of `area`, which may be longer.
///
/// # Errors
/// [`ReadError`], naming the first place that breaks the format.
pub fn read(area: &[u8]) -> Result<Tree, ReadError> {
    let header = Header::read(area)?;
    let blob = &area[..header.total_size];
    let reservations = read_reservations(blob, header.reservations)?;
    let strings = block(blob, header.strings, "the strings block lies outside")?;
    let structure = block(blob, header.structure, "the structure block lies outside")?;
    let mut reader = Reader {
        structure,
        strings,
        base: header.structure.0,
        position: 0,
    };
    Ok(Tree {
        total_size: header.total_size,
        reservations,
        nodes: reader.nodes()?,
    })
}

/// Where the blocks are: offset and bytes.
struct Header {
    total_size: usize,
    structure: (usize, usize),
    strings: (usize, usize),
    reservations: usize,
}

impl Header {
    fn read(area: &[u8]) -> Result<Self, ReadError> {
        let field = |index: usize| word(area, index * 4);
        if field(0).ok_or_else(|| fail(0, "no header"))? != MAGIC {
            return Err(fail(0, "wrong magic number"));
        }
        if area.len() < HEADER_SIZE {
            return Err(fail(area.len(), "the header is cut off"));
        }
        let get = |index: usize| field(index).unwrap_or(0) as usize;
        let total_size = get(1);
        if total_size > MAX_SIZE {
            return Err(fail(4, "larger than 2 MiB"));
        }
        if total_size < HEADER_SIZE || total_size > area.len() {
            return Err(fail(4, "the blob is cut off"));
        }
        let (version, compatible) = (get(5) as u32, get(6) as u32);
        if version < FIRST_VERSION || compatible > VERSION {
            return Err(fail(20, "unknown format version"));
        }
        // Version 16 has no size of the structure block: it ends where the blob does.
        let structure_size = if version >= VERSION {
            get(9)
        } else {
            total_size.saturating_sub(get(2))
        };
        Ok(Self {
            total_size,
            structure: (get(2), structure_size),
            strings: (get(3), get(8)),
            reservations: get(4),
        })
    }
}

fn block<'a>(
    blob: &'a [u8],
    (offset, size): (usize, usize),
    problem: &'static str,
) -> Result<&'a [u8], ReadError> {
    offset
        .checked_add(size)
        .and_then(|end| blob.get(offset..end))
        .ok_or_else(|| fail(offset, problem))
}

fn read_reservations(blob: &[u8], start: usize) -> Result<Vec<(u64, u64)>, ReadError> {
    let mut out = Vec::new();
    let mut position = start;
    loop {
        let number = |at: usize| {
            let high = word(blob, at)?;
            let low = word(blob, at.checked_add(4)?)?;
            Some(u64::from(high) << 32 | u64::from(low))
        };
        let entry = number(position).zip(position.checked_add(8).and_then(number));
        match entry {
            None => return Err(fail(position, "the memory reservation map is cut off")),
            Some((0, 0)) => return Ok(out),
            Some(entry) => out.push(entry),
        }
        position += 16;
    }
}

struct Reader<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    /// Where the structure block starts in the blob, for errors.
    base: usize,
    position: usize,
}

impl Reader<'_> {
    fn nodes(&mut self) -> Result<Vec<Node>, ReadError> {
        let mut nodes: Vec<Node> = Vec::new();
        let mut depth = 0;
        // Properties stand before the children of their node.
        let mut properties_allowed = false;
        loop {
            let at = self.position;
            match self.token()? {
                TOKEN_NOP => {}
                TOKEN_BEGIN_NODE => {
                    if depth == 0 && !nodes.is_empty() {
                        return Err(self.fail(at, "a second root node"));
                    }
                    if depth == MAX_DEPTH {
                        return Err(self.fail(at, "nested too deeply"));
                    }
                    let name = self.node_name()?;
                    let properties = Vec::new();
                    nodes.push(Node {
                        depth,
                        name,
                        properties,
                    });
                    depth += 1;
                    properties_allowed = true;
                }
                TOKEN_PROPERTY if properties_allowed => {
                    let property = self.property()?;
                    if let Some(node) = nodes.last_mut() {
                        node.properties.push(property);
                    }
                }
                TOKEN_PROPERTY => return Err(self.fail(at, "a property behind a node")),
                TOKEN_END_NODE if depth > 0 => {
                    depth -= 1;
                    properties_allowed = false;
                }
                TOKEN_END if depth == 0 && !nodes.is_empty() => return Ok(nodes),
                _ => return Err(self.fail(at, "unexpected token")),
            }
        }
    }

    fn token(&mut self) -> Result<u32, ReadError> {
        let value = word(self.structure, self.position)
            .ok_or_else(|| self.fail(self.position, "the structure block is cut off"))?;
        self.position += 4;
        Ok(value)
    }

    fn node_name(&mut self) -> Result<String, ReadError> {
        let start = self.position;
        let name = terminated(&self.structure[start..])
            .ok_or_else(|| self.fail(start, "a node name without an end"))?;
        self.advance(name.len() + 1);
        text(name).ok_or_else(|| self.fail(start, "a node name that is not printable"))
    }

    fn property(&mut self) -> Result<Property, ReadError> {
        let size = self.token()? as usize;
        let name_at = self.token()? as usize;
        let start = self.position;
        let data = start
            .checked_add(size)
            .and_then(|end| self.structure.get(start..end))
            .ok_or_else(|| self.fail(start, "a property value is cut off"))?
            .to_vec();
        self.advance(size);
        let name = self
            .strings
            .get(name_at..)
            .and_then(terminated)
            .and_then(text)
            .ok_or_else(|| self.fail(start, "a property name outside the strings block"))?;
        Ok(Property { name, data })
    }

    /// Skip `size` bytes and the padding behind them.
    fn advance(&mut self, size: usize) {
        self.position = (self.position + size).next_multiple_of(4);
    }

    fn fail(&self, position: usize, problem: &'static str) -> ReadError {
        fail(self.base + position, problem)
    }
}

fn fail(offset: usize, problem: &'static str) -> ReadError {
    ReadError { offset, problem }
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    let end = offset.checked_add(4)?;
    let cell: [u8; 4] = bytes.get(offset..end)?.try_into().ok()?;
    Some(u32::from_be_bytes(cell))
}

/// The bytes before the first NUL.
fn terminated(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some(&bytes[..end])
}

/// A name: printable ASCII, as the specification has it.
fn text(bytes: &[u8]) -> Option<String> {
    let printable = bytes.iter().all(|byte| byte.is_ascii_graphic());
    printable.then(|| String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdt::Writer;
    use proptest::prelude::*;

    fn written(build: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.node("", build);
        writer.finish().unwrap().area()
    }

    fn sample() -> Vec<u8> {
        written(|w| {
            w.cells("interrupt-parent", &[1]);
            w.node("cpus", |w| {
                w.empty("enable-method");
                w.node("cpu@0", |w| w.string("method", "psci"));
            });
            w.node("aliases", |_| {});
        })
    }

    #[test]
    fn what_was_written_is_read() {
        let tree = read(&sample()).unwrap();
        let shown: Vec<_> = tree
            .nodes
            .iter()
            .map(|node| (node.depth, node.name.as_str(), node.properties.len()))
            .collect();
        assert_eq!(
            shown,
            [
                (0, "", 1),
                (1, "cpus", 1),
                (2, "cpu@0", 1),
                (1, "aliases", 0)
            ]
        );
        // The name shares the tail of another one.
        assert_eq!(tree.nodes[2].properties[0].name, "method");
        assert_eq!(tree.nodes[2].properties[0].data, b"psci\0");
        assert_eq!(tree.reservations, []);
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let area = sample();
        let size = read(&area).unwrap().total_size;
        for length in 0..size {
            assert!(read(&area[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        fn nested(w: &mut Writer, left: usize) {
            if left > 0 {
                w.node("n", |w| nested(w, left - 1));
            }
        }
        assert!(read(&written(|w| nested(w, MAX_DEPTH - 1))).is_ok());
        let refused = read(&written(|w| nested(w, MAX_DEPTH))).unwrap_err();
        assert_eq!(refused.problem, "nested too deeply");
    }

    #[test]
    fn a_name_outside_the_strings_block_is_refused() {
        let mut area = sample();
        // The first property's name offset: header, map, BEGIN_NODE, name, PROP, length.
        area[0x38 + 16..0x38 + 20].copy_from_slice(&0xffff_fff0u32.to_be_bytes());
        let refused = read(&area).unwrap_err();
        assert_eq!(refused.problem, "a property name outside the strings block");
    }

    type Child = (String, Vec<(String, Vec<u8>)>);

    fn children() -> impl Strategy<Value = Vec<Child>> {
        let property = (
            "[a-z#][a-z,-]{0,12}",
            prop::collection::vec(any::<u8>(), 0..40),
        );
        let node = (
            "[a-z]{1,8}(@[0-9a-f]{1,8})?",
            prop::collection::vec(property, 0..6),
        );
        prop::collection::vec(node, 0..8)
    }

    proptest! {
        #[test]
        fn every_written_tree_is_read_back(children in children()) {
            let area = written(|w| for (name, properties) in &children {
                w.node(name, |w| for (name, data) in properties { w.property(name, data) });
            });
            let tree = read(&area).unwrap();
            let back: Vec<Child> = tree.nodes[1..].iter().map(|node| {
                let properties = node.properties.iter().map(|p| (p.name.clone(), p.data.clone()));
                (node.name.clone(), properties.collect())
            }).collect();
            prop_assert_eq!(back, children);
        }

        #[test]
        fn damage_never_panics(changes in prop::collection::vec((0usize..400, any::<u8>()), 1..8)) {
            let mut area = sample();
            for (at, byte) in changes { area[at] = byte; }
            let _ = read(&area);
        }

        #[test]
        fn noise_never_panics(mut noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&noise);
            if noise.len() >= 4 { noise[..4].copy_from_slice(&MAGIC.to_be_bytes()); }
            let _ = read(&noise);
        }
    }
}
