//! Every shader instance, without a device: naga validates the text, and finds the same parameters,
//! bindings and workgroup memory as Rust declares.

use ::wgpu::naga;

use super::attention;
use super::shader_text::{Binding, ShaderText};
use crate::DType;
use crate::backend::gpu::{self, Kernels};
use crate::ops::{self, for_each_op};

pub(super) const REALS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

pub(super) fn optional(dtypes: &[DType]) -> Vec<Option<DType>> {
    std::iter::once(None).chain(dtypes.iter().copied().map(Some)).collect()
}

/// Every instance of every op, with the fields of its parameters.
fn instances() -> Vec<(ShaderText, Vec<(String, &'static str)>)> {
    let mut all = Vec::new();
    let mut with = |sources: Vec<ShaderText>, fields: Vec<(String, &'static str)>| {
        all.extend(sources.into_iter().map(|source| (source, fields.clone())));
    };
    macro_rules! instances_of {
        ($($word:ident $op:ident $case:ident),* $(,)?) => {
            $(with(super::$word::instances(), gpu::fields::<<ops::$op as Kernels>::Params>());)*
        };
    }
    for_each_op!(instances_of);
    with(vec![attention::pack_source().unwrap()], gpu::fields::<attention::AttentionPackParams>());
    #[cfg(feature = "verify")]
    {
        use super::roof;
        with(vec![roof::multiply_add_source().unwrap()], gpu::fields::<roof::MultiplyAddParams>());
        with(vec![roof::copy_source().unwrap()], gpu::fields::<roof::CopyParams>());
    }
    all
}

/// Limits of the tiers. naga has no limits of its own.
const BASELINE_INVOCATIONS: u32 = 256;
const BASELINE_WORKGROUP_BYTES: u32 = 16384;
const BASELINE_STORAGE_BUFFERS: usize = 8;

fn validate(source: &ShaderText) -> (naga::Module, naga::proc::Layouter) {
    let text = source.text();
    let module = naga::front::wgsl::parse_str(&text)
        .unwrap_or_else(|e| panic!("{}: {}\n{text}", source.entry(), e.emit_to_string(&text)));
    // unpack2x16float is plain WGSL; naga counts it as a capability because old OpenGL lacks it.
    let mut capabilities = naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    if source.needs_subgroups() {
        capabilities |= naga::valid::Capabilities::SUBGROUP;
    }
    naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{}: {}\n{text}", source.entry(), e.emit_to_string(&text)));
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    (module, layouter)
}

#[test]
fn every_instance_validates_and_keeps_to_the_baseline() {
    let all = instances();
    for (source, fields) in &all {
        let name = source.entry();
        let (module, layouter) = validate(source);
        assert_eq!(module.entry_points.len(), 1, "{name}: one entry point per file");
        let entry = &module.entry_points[0];
        assert_eq!(entry.name, name);
        assert!(entry.workgroup_size.iter().product::<u32>() <= BASELINE_INVOCATIONS, "{name}");
        let in_space = |space| module.global_variables.iter().filter(move |(_, v)| v.space == space);
        let workgroup: u32 =
            in_space(naga::AddressSpace::WorkGroup).map(|(_, v)| layouter[v.ty].size.next_multiple_of(16)).sum();
        assert_eq!(workgroup, source.workgroup_memory(), "{name}: bytes of workgroup memory");
        assert!(workgroup <= BASELINE_WORKGROUP_BYTES, "{name}: {workgroup}");

        let uniform: Vec<_> = in_space(naga::AddressSpace::Uniform).collect();
        assert_eq!(uniform.len(), 1, "{name}: one uniform");
        let naga::TypeInner::Struct { members, .. } = &module.types[uniform[0].1.ty].inner else {
            panic!("{name}: parameters are a struct");
        };
        let declared: Vec<(String, &str)> = members
            .iter()
            .map(|m| {
                let ty = match module.types[m.ty].inner {
                    naga::TypeInner::Scalar(naga::Scalar::U32) => "u32",
                    naga::TypeInner::Scalar(naga::Scalar::F32) => "f32",
                    _ => panic!("{name}: {:?} is neither u32 nor f32", m.name),
                };
                (m.name.clone().unwrap(), ty)
            })
            .collect();
        assert_eq!(&declared, fields, "{name}: fields in WGSL and in Rust");

        let offsets: Vec<String> = source.operands().iter().map(|(n, _)| format!("{n}_offset")).collect();
        let first: Vec<String> = fields.iter().take(offsets.len()).map(|(n, _)| n.clone()).collect();
        assert_eq!(first, offsets, "{name}: offsets come first, one per operand");

        // Bindings 1.. are the operands that are present, in order.
        let present: Vec<&str> =
            source.operands().iter().filter(|(_, s)| *s != Binding::Absent).map(|(n, _)| *n).collect();
        assert!(present.len() <= BASELINE_STORAGE_BUFFERS, "{name}: {present:?}");
        let mut storage: Vec<(u32, String)> = module
            .global_variables
            .iter()
            .filter(|(_, v)| matches!(v.space, naga::AddressSpace::Storage { .. }))
            .map(|(_, v)| (v.binding.as_ref().unwrap().binding, v.name.clone().unwrap()))
            .collect();
        storage.sort();
        let expected: Vec<(u32, String)> =
            present.iter().enumerate().map(|(i, n)| (i as u32 + 1, n.to_string())).collect();
        assert_eq!(storage, expected, "{name}");
    }
    println!("{} instances", all.len());
}
