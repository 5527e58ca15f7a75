_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# Companions see the stages of strides 8 and 16.
model = dict(
    type='mmext.DeepSupervisionDetector',
    model='RetinaNet',
    companions=[
        dict(in_index=1, in_channels=512, num_classes=80),
        dict(in_index=2, in_channels=1024, num_classes=80),
    ],
)
custom_hooks = [dict(type='mmext.CompanionWeightHook')]
