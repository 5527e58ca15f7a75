_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# In the head's towers, which start from scratch; the layers that predict stay real.
model = dict(bbox_head=dict(conv_cfg=dict(type='mmext.BinaryWeightConv2d')))
custom_hooks = [dict(type='mmext.ProjectionHook')]
