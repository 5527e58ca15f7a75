_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# The base's ImageNet classifier, whose kernels may become wider. Its first stage is frozen.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, stage=(2, 3, 4), to=dict(type='mmext.GaussianConv2d', sigma=0.5, max_sigma=2.0))],
    )
)
optim_wrapper = dict(constructor='mmext.LayerOptionsConstructor')
custom_hooks = [dict(type='mmext.ProjectionHook')]
