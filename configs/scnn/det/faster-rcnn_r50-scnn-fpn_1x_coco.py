_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

# As a block behind the last stage: no neck is needed for it. In 2048 channels a kernel of nine would be large.
model = dict(
    backbone=dict(
        plugins=[
            dict(
                cfg=dict(type='mmext.SCNNBlock', directions=('down', 'right'), kernel_size=3),
                stages=(False, False, True, False),
                position='after_conv2',
            )
        ]
    )
)
