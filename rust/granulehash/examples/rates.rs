//! Rates of all kernels of this machine on one core, in GB/s: `cargo run --release --example rates`.

use islet_granulehash::{Algorithm, Kernel, FIELD_SIZE, GRANULE_SIZE};

const GRANULES: usize = 96;
const REPEATS: usize = 200;
const TRIES: usize = 7;

fn main() {
    let granules = vec![[0x5a; GRANULE_SIZE]; GRANULES];
    let mut digests = vec![[0; FIELD_SIZE]; GRANULES];
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        for kernel in Kernel::all_available(algorithm) {
            let best = (0..TRIES)
                .map(|_| {
                    let began = cpu_nanoseconds();
                    for _ in 0..REPEATS {
                        kernel.digest(std::hint::black_box(&granules), &mut digests);
                    }
                    cpu_nanoseconds() - began
                })
                .min()
                .unwrap_or_default();
            let rate = (REPEATS * GRANULES * GRANULE_SIZE) as f64 / best as f64;
            println!("{algorithm:?} {:<9} {rate:.2} GB/s", kernel.name());
        }
    }
}

/// Time that this thread had a processor: what else runs on the machine counts less than in wall time.
fn cpu_nanoseconds() -> u64 {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = statistics.split(' ').next().unwrap_or_default();
    first.parse().unwrap_or_default()
}
