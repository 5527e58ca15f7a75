_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# What the base freezes is left alone.
custom_hooks = [dict(type='mmext.OrthogonalConvHook', method='gor', match='backbone', num_groups=32, weight=0.01)]
