_base_ = 'mmdet::scratch/faster-rcnn_r50-scratch_fpn_gn-all_6x_coco.py'

model = dict(
    backbone=dict(
        init_cfg=[
            dict(type='mmext.ConvolutionAwareInit', layer='Conv2d'),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
        ]
    )
)
