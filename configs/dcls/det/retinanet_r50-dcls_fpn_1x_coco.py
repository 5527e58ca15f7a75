_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# The nine taps of each 3 x 3 kernel of the base's ImageNet classifier, free in a window of 5 x 5. The first stage is frozen.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[
            dict(
                kernel_size=3,
                stage=(2, 3, 4),
                to=dict(type='mmext.DCLSConv2d', kernel_size=5, padding=2, kernel_count=9, version='v0'),
            )
        ],
    )
)
optim_wrapper = dict(constructor='mmext.LayerOptionsConstructor')
custom_hooks = [dict(type='mmext.ProjectionHook'), dict(type='mmext.RepulsionHook', start_epoch=1)]
