_base_ = 'retinanet_fpn.py'

model = dict(neck=dict(type='mmext.RCFPN', norm_cfg=dict(type='BN'), out_conv_cfg=None))
