_base_ = ['../_base_/networks/cn-pe_28x10.py', '../_base_/phantom-256_5k.py']
# The phantom's edges need few octaves; what lies above is fitted to the gaps between the views.
model = dict(
    operator=dict(type='mmext.RadonOperator', views=100),
    network=dict(out_features=1, encoding=dict(num_octaves=3)),
)
