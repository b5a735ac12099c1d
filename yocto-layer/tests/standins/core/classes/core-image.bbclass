# A root is given (KENTLEDGE_ROOT); what the image does with it is run in order.
IMAGE_FEATURES ?= ""
CORE_IMAGE_EXTRA_INSTALL ?= ""
ROOTFS_POSTPROCESS_COMMAND ?= ""
EXTRA_IMAGEDEPENDS ?= ""

# As in oe-core: its own commands come by a deferred inherit, after everything that the recipe says.
inherit_defer rootfs-postcommands

# A type that nobody makes ends the parse.
python () {
    for name in d.getVar("IMAGE_FSTYPES").split():
        kind, *conversions = name.split(".")
        if kind not in d.getVar("IMAGE_TYPES").split():
            bb.error("%s: no IMAGE_CMD defined for IMAGE_FSTYPES entry '%s'" % (d.getVar("PN"), kind))
        for conversion in conversions:
            if conversion not in d.getVar("CONVERSIONTYPES").split():
                bb.error("%s: No CONVERSION_CMD defined for subtype \"%s\"" % (d.getVar("PN"), conversion))
}

addtask rootfs after do_install
do_rootfs[cleandirs] = "${IMAGE_ROOTFS}"
python do_rootfs() {
    bb.process.run(["cp", "-a", d.getVar("KENTLEDGE_ROOT") + "/.", d.getVar("IMAGE_ROOTFS")])
    for command in d.getVar("ROOTFS_POSTPROCESS_COMMAND").split():
        bb.build.exec_func(command, d)
}
