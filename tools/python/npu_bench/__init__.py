"""The benchmark of `cargo xtask bench`: this library and its peers in turn, each in a process of its own, on the same cores."""
