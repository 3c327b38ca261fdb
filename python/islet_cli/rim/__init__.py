"""The Realm Initial Measurement of a launch, predicted from its command line or its plan, and explained.

| modules | what they do |
| --- | --- |
| `measure` | the RIM of arguments, a plan or a request |
| `request` | what is to be measured, in which dialect; understood before anything is hashed |
| `options`, `numbers`, `devices`, `command_line`, `machine` | kvmtool's command line, from grammar to meaning |
| `sequence`, `capabilities`, `vmm_kvmtool`, `vmm_qemu`, `vmm_cloud_hypervisor`, `vmm_arguments` | the second dialect |
| `explain`, `explanation`, `influence`, `devicetree`, `boot_files` | what went into a RIM |
| `compare`, `sources`, `diff`, `content`, `search` | why two differ |
| `lock`, `stability`, `rem` | drift, what a RIM depends on, extensible measurements |
| `report`, `svg` | for people |
"""
