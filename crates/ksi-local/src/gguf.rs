//! Reads the GGUF container: the metadata, and where each tensor lies.
//!
//! Every length is checked against what is left of the file before anything of that length is
//! allocated, so that a damaged or hostile file costs no more memory than its own size.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use candle_core::Device;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::{GgmlDType, QTensor};

use crate::error::Flaw;

const MAGIC: &[u8; 4] = b"GGUF";
const MAX_ENTRIES: u64 = 1 << 14;
const MAX_ELEMENTS: u64 = 1 << 20;
const MAX_DIMENSIONS: u32 = 4;
const MAX_NESTING: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

/// An open model file whose header has been read and checked.
pub(crate) struct Gguf {
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, Place>,
    data_start: u64,
    file: BufReader<File>,
}

/// A metadata value, as far as a model needs it.
enum Value {
    Integer(i64),
    Float(f64),
    Text(String),
    Integers(Vec<i64>),
    Texts(Vec<String>),
    Unused,
}

/// Where a tensor lies behind the header, and what it is.
struct Place {
    dtype: GgmlDType,
    dims: Vec<usize>,
    offset: u64,
    bytes: u64,
}

impl Gguf {
    pub(crate) fn read(file: File) -> Result<Self, Flaw> {
        let size = file.metadata()?.len();
        let mut header = Header { file: BufReader::new(file), left: size };
        if header.array::<4>()? != *MAGIC {
            return Err(Flaw("it is not a GGUF file".to_owned()));
        }
        let version = header.u32()?;
        if !(2..=3).contains(&version) {
            return Err(Flaw(format!("its GGUF version {version} is not 2 or 3")));
        }
        let tensor_count = header.count("tensors", MAX_ENTRIES, 24)?;
        let value_count = header.count("metadata entries", MAX_ENTRIES, 13)?;
        let metadata = header.metadata(value_count)?;
        let tensors = header.places(tensor_count)?;
        let data_start = data_start(&metadata, size - header.left)?;
        check_places(&tensors, data_start, size)?;
        Ok(Self { metadata, tensors, data_start, file: header.file })
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        let Some(Value::Text(text)) = self.metadata.get(key) else { return None };
        Some(text)
    }

    pub(crate) fn float(&self, key: &str) -> Option<f64> {
        let Some(Value::Float(float)) = self.metadata.get(key) else { return None };
        Some(*float)
    }

    pub(crate) fn integer(&self, key: &str) -> Option<i64> {
        let Some(Value::Integer(integer)) = self.metadata.get(key) else { return None };
        Some(*integer)
    }

    /// A size that must be there and lie in the range that keeps memory small.
    pub(crate) fn size(&self, key: &str, max: usize) -> Result<usize, Flaw> {
        let value = self.integer(key).ok_or_else(|| Flaw(format!("`{key}` is missing")))?;
        usize::try_from(value)
            .ok()
            .filter(|size| (1..=max).contains(size))
            .ok_or_else(|| Flaw(format!("`{key}` is {value}, not between 1 and {max}")))
    }

    pub(crate) fn texts(&mut self, key: &str) -> Result<Vec<String>, Flaw> {
        let Some(Value::Texts(texts)) = self.metadata.remove(key) else {
            return Err(Flaw(format!("the list `{key}` is missing")));
        };
        Ok(texts)
    }

    pub(crate) fn integers(&self, key: &str) -> Option<&[i64]> {
        let Some(Value::Integers(integers)) = self.metadata.get(key) else { return None };
        Some(integers)
    }

    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of this name, which must have these dimensions.
    pub(crate) fn tensor(&mut self, name: &str, dims: &[usize]) -> Result<QTensor, Flaw> {
        let place = self
            .tensors
            .get(name)
            .ok_or_else(|| Flaw(format!("the tensor `{name}` is missing")))?;
        if place.dims != dims {
            let found = &place.dims;
            return Err(Flaw(format!("the tensor `{name}` is {found:?} and should be {dims:?}")));
        }
        let length = usize::try_from(place.bytes)
            .map_err(|_| Flaw(format!("the tensor `{name}` is too large")))?;
        let mut bytes = vec![0; length];
        self.file.seek(SeekFrom::Start(self.data_start + place.offset))?;
        self.file.read_exact(&mut bytes)?;
        Ok(qtensor_from_ggml(place.dtype, &bytes, dims.to_vec(), &Device::Cpu)?)
    }
}

/// The header while it is read, with the number of bytes that are left.
struct Header {
    file: BufReader<File>,
    left: u64,
}

impl Header {
    fn take(&mut self, bytes: u64) -> Result<(), Flaw> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or_else(|| Flaw("it ends too early".to_owned()))?;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Flaw> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Flaw> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of things of which each takes at least `least` bytes.
    fn count(&mut self, of: &str, max: u64, least: u64) -> Result<u64, Flaw> {
        let count = self.u64()?;
        if count > max || count * least > self.left {
            return Err(Flaw(format!("it claims {count} {of}, more than it can hold")));
        }
        Ok(count)
    }

    fn text(&mut self) -> Result<String, Flaw> {
        let length = self.u64()?;
        self.take(length)?;
        // `take` has compared the length with the file, so a `usize` on this system holds it.
        let mut bytes = vec![0; length as usize];
        self.file.read_exact(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| Flaw("a name in it is not UTF-8".to_owned()))
    }

    fn metadata(&mut self, count: u64) -> Result<HashMap<String, Value>, Flaw> {
        let mut metadata = HashMap::new();
        for _ in 0..count {
            let key = self.text()?;
            let kind = self.u32()?;
            metadata.insert(key, self.value(kind, 0)?);
        }
        Ok(metadata)
    }

    fn value(&mut self, kind: u32, nesting: u32) -> Result<Value, Flaw> {
        Ok(match kind {
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            8 => Value::Text(self.text()?),
            9 if nesting < MAX_NESTING => self.list(nesting + 1)?,
            9 => return Err(Flaw("its lists are nested too deep".to_owned())),
            _ => Value::Integer(self.integer(kind)?),
        })
    }

    fn integer(&mut self, kind: u32) -> Result<i64, Flaw> {
        Ok(match kind {
            0 | 7 => self.array::<1>()?[0].into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            10 => i64::try_from(self.u64()?).unwrap_or(i64::MAX),
            11 => i64::from_le_bytes(self.array()?),
            _ => return Err(Flaw(format!("it holds a value of the unknown kind {kind}"))),
        })
    }

    fn list(&mut self, nesting: u32) -> Result<Value, Flaw> {
        let kind = self.u32()?;
        let count = self.count("values in a list", MAX_ELEMENTS, least_bytes(kind))?;
        match kind {
            8 => (0..count).map(|_| self.text()).collect::<Result<_, _>>().map(Value::Texts),
            6 | 9 | 12 => {
                for _ in 0..count {
                    self.value(kind, nesting)?;
                }
                Ok(Value::Unused)
            }
            _ => (0..count)
                .map(|_| self.integer(kind))
                .collect::<Result<_, _>>()
                .map(Value::Integers),
        }
    }

    fn places(&mut self, count: u64) -> Result<HashMap<String, Place>, Flaw> {
        let mut places = HashMap::new();
        for _ in 0..count {
            let name = self.text()?;
            let place = self.place(&name)?;
            places.insert(name, place);
        }
        Ok(places)
    }

    fn place(&mut self, name: &str) -> Result<Place, Flaw> {
        let rank = self.u32()?;
        if rank > MAX_DIMENSIONS {
            return Err(Flaw(format!("the tensor `{name}` has {rank} dimensions")));
        }
        let too_large = || Flaw(format!("the tensor `{name}` is too large"));
        let mut dims = Vec::new();
        let mut elements = 1_u64;
        for _ in 0..rank {
            let dim = self.u64()?;
            elements = elements.checked_mul(dim).ok_or_else(too_large)?;
            dims.push(usize::try_from(dim).map_err(|_| too_large())?);
        }
        // The file lists the fastest running dimension first.
        dims.reverse();
        let dtype = dtype(self.u32()?, name)?;
        let block = dtype.block_size() as u64;
        if !elements.is_multiple_of(block) {
            return Err(Flaw(format!("the tensor `{name}` ends inside a block")));
        }
        let bytes = (elements / block).checked_mul(dtype.type_size() as u64);
        Ok(Place { dtype, dims, offset: self.u64()?, bytes: bytes.ok_or_else(too_large)? })
    }
}

fn least_bytes(kind: u32) -> u64 {
    match kind {
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => 12,
        _ => 1,
    }
}

fn dtype(code: u32, tensor: &str) -> Result<GgmlDType, Flaw> {
    Ok(match code {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return Err(Flaw(format!("the tensor `{tensor}` has the unknown type {code}"))),
    })
}

fn data_start(metadata: &HashMap<String, Value>, header_end: u64) -> Result<u64, Flaw> {
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Integer(bytes @ 1..=65_536)) => bytes.unsigned_abs(),
        Some(_) => return Err(Flaw("its alignment is not between 1 and 65536".to_owned())),
    };
    Ok(header_end.next_multiple_of(alignment))
}

/// Tensors lie inside the file and are together no larger than it: none lies under another.
fn check_places(places: &HashMap<String, Place>, start: u64, size: u64) -> Result<(), Flaw> {
    let mut left = size.saturating_sub(start);
    for (name, place) in places {
        let end = start.checked_add(place.offset).and_then(|at| at.checked_add(place.bytes));
        if end.is_none_or(|end| end > size) || place.bytes > left {
            return Err(Flaw(format!("it ends before the end of the tensor `{name}`")));
        }
        left -= place.bytes;
    }
    Ok(())
}
