_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# In the head, which starts from scratch: the backbone keeps its ImageNet weights.
model = dict(bbox_head=dict(conv_cfg=dict(type='mmext.PHConv2d', n=4)))
