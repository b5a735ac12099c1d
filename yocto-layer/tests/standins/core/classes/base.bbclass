# The tasks that a recipe of this layer has, run by BitBake's own fetcher and task code.
addtask fetch
do_fetch[cleandirs] = "${DL_DIR}/done"
python do_fetch() {
    src_uri = (d.getVar("SRC_URI") or "").split()
    if src_uri:
        bb.fetch2.Fetch(src_uri, d).download()
}

addtask unpack after do_fetch
do_unpack[cleandirs] = "${UNPACKDIR}"
python do_unpack() {
    src_uri = (d.getVar("SRC_URI") or "").split()
    if src_uri:
        bb.fetch2.Fetch(src_uri, d).unpack(d.getVar("UNPACKDIR"))
}

addtask configure after do_unpack
base_do_configure() {
    :
}

addtask compile after do_configure
do_compile[dirs] = "${B}"
base_do_compile() {
    :
}

addtask install after do_compile
do_install[cleandirs] = "${D}"
base_do_install() {
    :
}

# oe-core rejects a recipe whose name is an override (QA check pn-overrides).
python () {
    if d.getVar("PN") in d.getVar("OVERRIDES").split(":")[:-1]:
        bb.error("Recipe %s has PN of \"%s\" which is in OVERRIDES" % (d.getVar("FILE"), d.getVar("PN")))
}

EXPORT_FUNCTIONS do_configure do_compile do_install
