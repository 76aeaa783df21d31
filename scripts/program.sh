# Sourced by the scripts that build or run the program, with `repository` set to its folder. Sets `tidemill` to where
# the program is or will be. Not to be run.

# Cargo takes a relative one from its working directory, which for our scripts is the repository; an empty one it
# refuses.
chosen_target=${CARGO_TARGET_DIR:-${CARGO_BUILD_TARGET_DIR:-}}
case $chosen_target in '' | /*) ;; *) chosen_target=$repository/$chosen_target ;; esac
export CARGO_TARGET_DIR="${chosen_target:-$repository/target}"
# It would move the program to a folder of its own.
unset CARGO_BUILD_TARGET
tidemill=$CARGO_TARGET_DIR/release/tidemill

# A rustup without a toolchain has a cargo as well, which does nothing but fail.
has_cargo() {
    cargo --version >/dev/null 2>&1
}

# need_cargo SCRIPT
need_cargo() {
    has_cargo && return
    echo "$1: cargo not found: install Rust 1.88 or newer, for instance with rustup (https://rustup.rs)" >&2
    return 1
}

# What an earlier build by another user has left is as good as a read-only checkout.
can_write() {
    release=$CARGO_TARGET_DIR/release
    mkdir -p "$release" 2>/dev/null && [ -w "$release" ] || return 1
    [ ! -e "$release/.cargo-lock" ] || [ -w "$release/.cargo-lock" ]
}

# Builds the program. Where that is not possible, takes what is there.
need_program() {
    if [ -x "$tidemill" ] && ! { has_cargo && can_write; }; then
        echo "nothing can be built here: $tidemill is taken as it is" >&2
        return
    fi
    # Cargo's words go to standard error, so that standard output is the program's alone.
    "$repository/compile.sh" >&2 || return 1
}

# need_bench SCRIPT: builds the benchmarks, a workspace of its own, and sets `bench` to where their program is.
need_bench() {
    need_cargo "$1" || return 1
    bench_target=${chosen_target:+$chosen_target/bench}
    bench_target=${bench_target:-$repository/tests/bench/target}
    CARGO_TARGET_DIR=$bench_target cargo build --release --locked --quiet \
        --manifest-path "$repository/tests/bench/Cargo.toml" || return 1
    bench=$bench_target/release
}
