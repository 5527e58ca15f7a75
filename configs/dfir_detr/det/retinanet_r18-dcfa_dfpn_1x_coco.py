_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'

# The second blocks of the two last stages become DCFA, the others keep their pretrained weights.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='mmdet.ResNet',
        rules=[dict(layer='BasicBlock', match=r'layer[34]\.1$', to=dict(type='mmext.DCFA'))],
    ),
    neck=dict(type='mmext.DFPN'),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
