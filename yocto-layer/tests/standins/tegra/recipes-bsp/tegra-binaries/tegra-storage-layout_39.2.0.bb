# meta-tegra: NVIDIA's partitions.
do_install() {
    install -d ${D}${datadir}/tegraflash
    cat >${D}${datadir}/tegraflash/external-flash.xml <<END
<partition_layout>
    <device type="external">
        <partition name="UDA" type="data">
            <size> 419430400 </size>
        </partition>
        <partition name="APP" id="1" type="data">
            <filename> APPFILE </filename>
        </partition>
    </device>
</partition_layout>
END
}
