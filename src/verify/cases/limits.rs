//! Cases beyond the constants and conditions at which kernels change their path, too large for a
//! covering selection; and rows that allow vectorised loads and end within one. `crossings.rs`
//! lists the constants and checks both sides.

use super::Case;

/// A constant or condition of a kernel or its launch, and the cases beyond it.
pub(crate) struct Limit {
    /// The file, and the constant or condition as written there.
    #[cfg_attr(not(test), expect(dead_code, reason = "the test of `crossings.rs` reads it"))]
    pub place: [&'static str; 2],
    /// The cases.
    pub cases: &'static [&'static str],
}

/// In the order of the ops.
pub(crate) const LIMITS: &[Limit] = &[
    // Runs of φ whose items a warp counts together, and media.
    Limit {
        place: ["kernels/attention_media.cu", "first += 32"],
        cases: &[
            "attention:batch=1,q=257,k=240,k2=none,h=3/3,d=64,rule=same_media,media=120,phi=planned,keys=all,keys2=all,batching=dense,empty=zero,extra=none,values=normal,layout=gapless,dtype=f16,out=same,seed=10",
            "attention:batch=2,q=129,k=96,k2=none,h=1/1,d=8,rule=same_media,media=48,phi=planned,keys=lengths,keys2=all,batching=dense,empty=mixed,extra=lse,values=normal,layout=gapless,dtype=f32,out=same,seed=11",
            "attention:batch=2,q=65,k=96,k2=none,h=1/1,d=8,rule=same_media,media=48,phi=any,keys=all,keys2=all,batching=dense,empty=uniform,extra=both,values=normal,layout=gapless,dtype=f32,out=same,seed=12",
            "attention:batch=1,q=33,k=80,k2=none,h=1/1,d=8,rule=media_bits,media=40,phi=any,keys=all,keys2=all,batching=dense,empty=zero,extra=both,values=normal,layout=gapless,dtype=f32,out=same,seed=13",
        ],
    },
    // Query heads of one K/V head per block of the decoding kernel.
    Limit {
        place: ["src/backend/cuda/attention/variant.rs", "DECODE_HEADS: usize = 8"],
        cases: &[
            "attention:batch=1,q=1,k=65,k2=none,h=100/1,d=64,rule=all,media=1,phi=any,keys=all,keys2=all,batching=dense,empty=zero,extra=lse,values=normal,layout=gapless,dtype=f16,out=same,seed=10",
            "attention:batch=2,q=1,k=300,k2=none,h=18/2,d=24,rule=all,media=1,phi=any,keys=lengths,keys2=all,batching=dense,empty=attend_all,extra=lse,values=normal,layout=padded,dtype=bf16,out=same,seed=11",
            "attention:batch=1,q=3,k=70,k2=none,h=70/1,d=8,rule=all,media=1,phi=any,keys=all,keys2=all,batching=dense,empty=zero,extra=both,values=normal,layout=gapless,dtype=f32,out=same,seed=12",
        ],
    },
    // Columns of a head in a tile, or in a workgroup's registers.
    Limit {
        place: ["src/backend/cuda/attention/variant.rs", "head_dim <= 128"],
        cases: &[
            "attention:batch=1,q=33,k=70,k2=none,h=2/1,d=136,rule=all,media=1,phi=any,keys=lengths,keys2=all,batching=dense,empty=zero,extra=both,values=normal,layout=gapless,dtype=f32,out=same,seed=10",
            "attention:batch=2,q=9,k=40,k2=30,h=2/2,d=200,rule=same_media,media=4,phi=ordered,keys=all,keys2=all,batching=dense,empty=mixed,extra=lse,values=normal,layout=padded,dtype=bf16,out=same,seed=11",
            "attention:batch=1,q=1,k=70,k2=none,h=4/1,d=257,rule=all,media=1,phi=any,keys=all,keys2=all,batching=dense,empty=zero,extra=lse,values=normal,layout=gapless,dtype=f16,out=same,seed=12",
        ],
    },
    // Segments end at different lengths: both decide whether a row's media exist.
    Limit {
        place: ["kernels/lib/attention_keys.cuh", "media_present"],
        cases: &[
            "attention:batch=2,q=64,k=64,k2=64,h=3/3,d=64,rule=same_media,media=5,phi=any,keys=lengths,keys2=lengths,batching=dense,empty=mixed,extra=none,values=normal,layout=gapless,dtype=f32,out=same,seed=10",
            "attention:batch=2,q=64,k=64,k2=64,h=3/3,d=64,rule=same_media,media=5,phi=any,keys=lengths,keys2=lengths,batching=dense,empty=uniform,extra=lse,values=normal,layout=gapless,dtype=f16,out=same,seed=11",
            "attention:batch=2,q=64,k=70,k2=40,h=4/2,d=40,rule=preceding_media,media=5,phi=any,keys=lengths,keys2=lengths,batching=dense,empty=attend_all,extra=both,values=normal,layout=gapless,dtype=f32,out=same,seed=12",
            "attention:batch=3,q=20,k=70,k2=40,h=1/1,d=8,rule=preceding_media,media=4,phi=any,keys=lengths,keys2=lengths,batching=ragged,empty=mixed,extra=both,values=normal,layout=gapless,dtype=bf16,out=f32,seed=13",
        ],
    },
    // Long keys; a row sees only the last one.
    Limit {
        place: ["src/backend/wgpu/attention/variant.rs", "LONG: usize = 1024"],
        cases: &[
            "attention:batch=2,q=1,k=9000,k2=none,h=1/1,d=8,rule=all,media=1,phi=any,keys=last,keys2=all,batching=dense,empty=uniform,extra=both,values=normal,layout=gapless,dtype=f32,out=same,seed=10",
            "attention:batch=1,q=17,k=4200,k2=none,h=1/1,d=8,rule=all,media=1,phi=any,keys=last,keys2=all,batching=dense,empty=attend_all,extra=both,values=normal,layout=gapless,dtype=f16,out=same,seed=11",
        ],
    },
    // Tokens in one block of media_index: 256 threads of 8.
    Limit {
        place: ["kernels/media_index.cu", "EACH = 8"],
        cases: &[
            "media_index:batch=1,rows=5000,from=tokens,density=dense,next=false,document=hide,carry=positive,carry_out=true,count=false,plan=true,layout=gapless,seed=10",
            "media_index:batch=1,rows=5000,from=tokens,density=rare,next=false,document=ignore,carry=positive,carry_out=true,count=false,plan=true,layout=gapless,seed=10",
            "media_index:batch=2,rows=2049,from=locations,density=rare,next=true,document=ignore,carry=none,carry_out=true,count=true,plan=false,layout=padded,seed=11",
            "media_index:batch=1,rows=4097,from=tokens,density=rare,next=false,document=restart,carry=ended,carry_out=true,count=false,plan=true,layout=gapless,seed=12",
        ],
    },
    // Columns of a row in a block's registers: 8192; in a warp's, 1024; in eight lanes', 128.
    Limit {
        place: ["kernels/norm.cu", "HELD"],
        cases: &[
            "norm:batch=1,rows=2,heads=1,width=9000,kind=rms,eps=1e-6,input=plain,add=none,weight=false,bias=false,values=normal,layout=gapless,dtype=f32,parameters=f32,seed=3",
            "norm:batch=1,rows=3,heads=1,width=8200,kind=layer,eps=1e-5,input=in_place,add=full,weight=true,bias=true,values=shifted,layout=gapless,dtype=bf16,parameters=f32,seed=4",
            "norm:batch=1,rows=2,heads=1,width=8193,kind=l2,eps=1e-12,input=gather,add=repeated,weight=true,bias=false,values=normal,layout=padded,dtype=f16,parameters=same,seed=5",
            "norm:batch=1,rows=5,heads=1,width=1025,kind=layer,eps=1e-12,input=plain,add=full,weight=true,bias=true,values=normal,layout=gapless,dtype=f16,parameters=same,seed=6",
        ],
    },
    // Rows of a tile that a reduction covers.
    Limit {
        place: ["src/backend/wgpu/linear.rs", "0..=16 => Variant::Tiled { rows: 1 }"],
        cases: &[
            "linear:batch=1,rows=33,n=96,k=2,matrix=view,activation=none,bias=true,residual=none,gate=none,mask=false,reduce=max,values=normal,layout=gapless,dtype=f32,stream=same,parameters=same,seed=3",
            "linear:batch=2,rows=17,n=65,k=33,matrix=prepared,activation=none,bias=true,residual=none,gate=none,mask=false,reduce=max,values=normal,layout=gapless,dtype=bf16,stream=same,parameters=f32,seed=4",
            "linear:batch=2,rows=60,n=33,k=65,matrix=view,activation=gelu,bias=true,residual=none,gate=none,mask=false,reduce=mean,values=normal,layout=gapless,dtype=f16,stream=f32,parameters=same,seed=5",
            "linear:batch=3,rows=40,n=64,k=64,matrix=view,activation=none,bias=false,residual=none,gate=none,mask=false,reduce=max,values=non_finite,layout=padded,dtype=f32,stream=same,parameters=same,seed=6",
        ],
    },
    // Columns of a row that are staged together.
    Limit {
        place: ["src/backend/cpu/gated_residual.rs", "SEGMENT: usize = 512"],
        cases: &[
            "gated_residual:batch=2,rows=3,width=1030,gate=channel,in_place=false,mask=true,values=normal,layout=gapless,dtype=f16,stream=same,gate_dtype=f32,seed=10",
            "gated_residual:batch=1,rows=2,width=513,gate=scalar,in_place=true,mask=false,values=normal,layout=padded,dtype=bf16,stream=f32,gate_dtype=same,seed=11",
        ],
    },
    // Rows that allow vectorised loads and end within one: NaN follows in the gap.
    Limit {
        place: ["kernels/lib/columns.cuh", "COLUMNS = 8"],
        cases: &[
            "attention:batch=2,q=5,k=70,k2=none,h=2/1,d=40,rule=all,media=1,phi=any,keys=lengths,keys2=all,batching=dense,empty=zero,extra=lse,values=normal,layout=aligned,dtype=f32,out=same,seed=20",
            "attention:batch=2,q=65,k=70,k2=20,h=2/2,d=24,rule=same_media,media=5,phi=ordered,keys=all,keys2=all,batching=dense,empty=mixed,extra=both,values=normal,layout=aligned,dtype=f16,out=same,seed=21",
            "attention:batch=1,q=1,k=130,k2=none,h=4/2,d=20,rule=all,media=1,phi=any,keys=all,keys2=all,batching=dense,empty=zero,extra=lse,values=normal,layout=aligned,dtype=bf16,out=f32,seed=22",
            "linear:batch=2,rows=3,n=33,k=65,matrix=view,activation=gelu,bias=true,residual=from,gate=channel,mask=true,reduce=none,values=normal,layout=aligned,dtype=f32,stream=same,parameters=same,seed=20",
            "linear:batch=1,rows=5,n=40,k=1028,matrix=view,activation=none,bias=false,residual=none,gate=none,mask=false,reduce=none,values=normal,layout=aligned,dtype=bf16,stream=same,parameters=same,seed=21",
            "linear:batch=2,rows=70,n=65,k=100,matrix=view,activation=swiglu,bias=false,residual=in_place,gate=scalar,mask=false,reduce=none,values=normal,layout=aligned,dtype=f16,stream=f32,parameters=f32,seed=22",
            "norm:batch=1,rows=5,heads=2,width=33,kind=layer,eps=1e-5,input=plain,add=full,weight=true,bias=true,values=shifted,layout=aligned,dtype=f32,parameters=same,seed=20",
            "norm:batch=2,rows=3,heads=1,width=1027,kind=rms,eps=1e-6,input=plain,add=none,weight=true,bias=false,values=normal,layout=aligned,dtype=f16,parameters=f32,seed=21",
            "norm:batch=1,rows=3,heads=1,width=129,kind=l2,eps=1e-12,input=gather,add=repeated,weight=true,bias=false,values=normal,layout=aligned,dtype=bf16,parameters=same,seed=22",
            "gated_residual:batch=2,rows=3,width=33,gate=channel,in_place=false,mask=true,values=normal,layout=aligned,dtype=f16,stream=same,gate_dtype=same,seed=20",
            "gated_residual:batch=1,rows=4,width=257,gate=scalar,in_place=true,mask=false,values=normal,layout=aligned,dtype=f32,stream=same,gate_dtype=same,seed=21",
            "gated_residual:batch=2,rows=2,width=60,gate=channel,in_place=false,mask=false,values=normal,layout=aligned,dtype=bf16,stream=f32,gate_dtype=f32,seed=22",
        ],
    },
];

/// All of them.
pub(crate) fn cases() -> impl Iterator<Item = Case> {
    LIMITS.iter().flat_map(|limit| limit.cases).filter_map(|case| Case::read(case, true).ok())
}
