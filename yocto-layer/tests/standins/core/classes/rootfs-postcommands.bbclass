# oe-core: without the feature for it, nobody logs in without a password.
ROOTFS_POSTPROCESS_COMMAND += "${@bb.utils.contains('IMAGE_FEATURES', 'empty-root-password', '', 'zap_empty_root_password', d)}"

zap_empty_root_password() {
    sed -i 's%^root::%root:*:%' ${IMAGE_ROOTFS}/etc/shadow
}
