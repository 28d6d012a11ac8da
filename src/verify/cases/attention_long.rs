//! Cases of `attention` with few rows against long keys, which a covering selection cannot afford:
//! where backends split the keys.

/// Abridged reproduction strings: few rows, one row of media, rows that see nothing; more rows than
/// 8; the other rules, dtypes and layouts. Some in f32 are small enough for a browser.
pub(crate) const LONG: &[&str] = &[
    "attention:batch=2,q=1,k=1500,h=4/2,d=24,media=5,phi=any,keys=lengths,batching=slots,empty=attend_all,extra=both,seed=2000",
    "attention:batch=2,q=2,k=300,h=4/2,d=8,rule=same_media,media=5,phi=any,keys=lengths,empty=mixed,extra=both,seed=2001",
    "attention:batch=1,q=9,k=1100,h=1/1,d=24,media=5,phi=any,keys=lengths,empty=uniform,extra=both,seed=2002",
    "attention:batch=2,q=2,k=700,k2=400,h=4/2,d=64,rule=preceding_media,media=5,phi=any,keys=bits,extra=both,values=poison,layout=padded,seed=2003",
    "attention:batch=2,q=1,k=2304,h=4/2,d=64,rule=media_bits,media=5,phi=any,keys=lengths,empty=attend_all,extra=both,values=sharp,dtype=bf16,out=f32,seed=2004",
    "attention:batch=2,q=16,k=1030,k2=16,h=2/2,d=16,rule=prefix_causal,media=5,phi=any,keys=lengths,extra=both,dtype=f16,seed=2005",
    "attention:batch=1,q=1,k=2048,h=1/1,d=8,media=5,phi=any,keys=all,extra=both,values=exact,seed=2006",
];
