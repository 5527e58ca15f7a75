# Every output is taken behind its node, so that no layer is left out.
_base_ = 'leyolo-m_4xb32-500e_coco.py'

model = dict(neck=dict(official_taps=False), bbox_head=dict(in_channels=[48, 88, 128]))
