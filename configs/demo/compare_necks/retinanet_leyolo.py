_base_ = 'retinanet_fpn.py'

model = dict(neck=dict(_delete_=True, type='mmext.LeYOLOFPAN', in_channels=[64, 128, 256], out_channels=64, num_outs=3))
