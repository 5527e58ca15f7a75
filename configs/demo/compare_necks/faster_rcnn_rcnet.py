_base_ = 'faster_rcnn_fpn.py'

model = dict(neck=dict(type='mmext.RCFPN', norm_cfg=dict(type='BN'), out_conv_cfg=None))
