_base_ = 'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py'

# Three maps of strides 8, 16 and 32, as the pyramid of RetinaNet starts.
model = dict(
    type='mmext.auto_channels',
    model='mmdet.RetinaNet',
    backbone=dict(
        _delete_=True, type='mmext.PfNet', arch='PiT-S-max', out_norm=dict(type='mmext.LayerNorm2d', eps=1e-6)
    ),
    neck=dict(in_channels='auto'),
)
