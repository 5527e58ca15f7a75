# The levels of the stock pyramid meet in hyperedges behind it.
_base_ = 'retinanet_fpn.py'

model = dict(neck=[_base_.model.neck, dict(type='mmext.SoftHGFusionNeck', in_channels=[64] * 3)])
