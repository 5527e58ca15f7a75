_base_ = 'retinanet_fpn.py'

model = dict(neck=dict(type='PAFPN'))
