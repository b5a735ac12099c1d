# Crates come as the fetcher unpacked them, and from nowhere else. KENTLEDGE_TARGET, with what else cargo needs in the
# environment, says for which machine is compiled; without it cargo only resolves all crates, and KENTLEDGE_BINARY is installed.
export CARGO_HOME = "${UNPACKDIR}/cargo_home"
CARGO_BUILD_FLAGS ?= "--release"

cargo_do_configure() {
    mkdir -p ${CARGO_HOME}
    cat >${CARGO_HOME}/config.toml <<END
[source.bitbake]
directory = "${CARGO_HOME}/bitbake"
[source.crates-io]
replace-with = "bitbake"
[net]
offline = true
END
}

cargo_do_compile() {
    cd ${S}
    if [ -n "${KENTLEDGE_TARGET}" ]; then
        cargo build ${CARGO_BUILD_FLAGS} --target ${KENTLEDGE_TARGET} --target-dir ${WORKDIR}/target
    else
        cargo metadata --locked --format-version 1 >${WORKDIR}/metadata.json
    fi
}

cargo_do_install() {
    binary=${KENTLEDGE_BINARY}
    [ -z "${KENTLEDGE_TARGET}" ] || binary=${WORKDIR}/target/${KENTLEDGE_TARGET}/release/kentledge
    install -D -m 0755 $binary ${D}${bindir}/kentledge
}

EXPORT_FUNCTIONS do_configure do_compile do_install
