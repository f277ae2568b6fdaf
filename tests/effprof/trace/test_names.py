"""What kernels' names say, on names from real traces and libraries."""

from __future__ import annotations

import pytest

from effprof.trace.names import collective_kind, kernel_family, uses_matrix_units

NATIVE = "void at::native::"


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gemm", "volta_sgemm_128x32_nt"),
        ("gemm", "void cutlass::Kernel<cutlass_80_tensorop_s1688gemm_64x64_16x6_nt_align4>(…)"),
        ("gemm", "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_kernel"),
        ("gemm", "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT"),
        ("gemm", "Cijk_Alik_Bljk_SB_Bias_AS_SAV_UserArgs_MT64x16x32_MI16x16x1_SN_LDSB0"),
        ("gemm", "void splitKreduce_kernel<float, float, float, float, true, false, false>(cublasSplitKParams<float>)"),
        ("gemm", "void gemv2T_kernel_val<int, int, float, float, float, float, 128, 16, 4, 4, false, false>"),
        ("gemm", "triton_tem_fused_mm_7"),
        ("gemm", "gemm_kernel"),
        ("gemm", "aclnnMatmul_MatMulV2_MatMulV2"),
        ("grouped_gemm", "void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<cutlass::gemm::"
                         "kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<cute::tuple<int, int, int>>>>>"),
        ("grouped_gemm", "void cutlass::Kernel<cutlass::gemm::kernel::GemmGrouped<…>>"),
        ("grouped_gemm", "_grouped_mm_kernel"),
        ("grouped_gemm", "fused_moe_kernel"),
        ("grouped_gemm", "aclnnGroupedMatmulV4_GroupedMatmul_GroupedMatmul"),
        ("attention", "void flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, false>>"),
        ("attention", "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<…>::Params)"),
        ("attention", "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_f16_knob_32"),
        ("attention", "triton_tem_fused_flex_attention_0"),
        ("normalisation", f"{NATIVE}(anonymous namespace)::vectorized_layer_norm_kernel<float, float>(int, float)"),
        ("normalisation", f"{NATIVE}(anonymous namespace)::GammaBetaBackwardCUDAKernel<float, float>(long, long)"),
        ("normalisation", "void cudnn::bn_fw_tr_1C11_singleread<float, 512, true, 1, 2, 0>(…)"),
        ("normalisation", "_rms_norm_fwd_kernel"),
        ("convolution", "cudnn_infer_ampere_scudnn_128x64_relu_xregs_large_nn_v1"),
        ("convolution", "void cutlass_cudnn_train::Kernel<cutlass_tensorop_s1688wgrad_optimized_tf32_256x64>"),
        ("convolution", "void cudnn::ops::nchwToNhwcKernel<float, float, float, false, true>(…)"),
        ("elementwise", f"{NATIVE}vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(int, …)"),
        ("elementwise", f"{NATIVE}unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(…)>"),
        ("elementwise", f"{NATIVE}elementwise_kernel<128, 2, at::native::gpu_kernel_impl<at::native::tanh>>"),
        ("elementwise", "triton_poi_fused_add_cos_sin_0"),
        ("optimizer", "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<4>, "
                      "FusedAdamMathFunctor<float, 4, 1, false>>"),
        ("reduction", f"{NATIVE}reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::NormTwoOps<float>>>"),
        ("reduction", "triton_red_fused_sum_3"),
        ("reduction", "void (anonymous namespace)::softmax_warp_forward<float, float, float, 10, true, false>(…)"),
        ("embedding", "void split_embedding_codegen_forward_unweighted_kernel<float, float, float, long, 2ul>(…)"),
        ("embedding", "split_embedding_backward_codegen_rowwise_adagrad_unweighted_kernel_cta_per_row_1<float>"),
        ("memory", f"{NATIVE}(anonymous namespace)::CatArrayBatchedCopy<float, unsigned int, 2, 128, 1>(float*)"),
        ("memory", "void cub::DeviceRadixSortOnesweepKernel<cub::DeviceRadixSortPolicy<long, int, int>>(…)"),
        ("memory", f"{NATIVE}index_elementwise_kernel<128, 4, at::native::gpu_index_kernel<…>>" ),
        ("communication", "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)"),
        ("communication", "ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclWorkElem)"),
        ("communication", "ncclSymkDevKernel_AllGather_LL(ncclSymDevArgs)"),
        ("communication", "mscclKernel_Sum_float_Simple_false"),
        ("communication", "mcclKernel_AllReduce_RING_SIMPLE_Sum___mt_bfloat16(mcclDevComm*)"),
        ("communication", "oneccl_allreduce_pcie"),
        ("communication", "hcom_allReduce__606_0_1"),
        ("communication", "hcom_reduceScatter_AicpuKernel_1"),
        ("communication", "HcclAllreduce"),
        ("communication", "void deep_ep::internode_ll::dispatch<true, false, 7168>(void*)"),
        ("communication", "void vllm::cross_device_reduce_2stage<__nv_bfloat16, 8>(…)"),
        ("communication", "nvshmemi_transfer_syncapi_update_mem"),
        ("other", "at::cuda::(anonymous namespace)::spin_kernel(long)"),
    ],
)  # fmt: skip
def test_family(family: str, name: str) -> None:
    assert kernel_family(name) == family


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("all_reduce", "allreduce"),
        ("all_reduce", "allreduce_coalesced"),
        ("all_gather", "_allgather_base"),
        ("all_gather", "all_gather_into_tensor_coalesced"),
        ("reduce_scatter", "_reduce_scatter_base"),
        ("reduce_scatter", "hcom_reduceScatter__606_0_1"),
        ("all_to_all", "all_to_allv"),
        ("all_to_all", "ALLTOALL_BASE"),
        ("broadcast", "ncclKernel_Broadcast_RING_LL_Sum_int8_t"),
        ("send_recv", "send"),
        ("send_recv", "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"),
        ("send_recv", "hcom_batchSendRecv__1"),
        ("all_to_all", "void deep_ep::intranode::combine<…>"),
        ("barrier", "barrier"),
        ("reduce", "reduce"),
        (None, "ncclDevKernel_Generic_4(ncclDevKernelArgsStorage<4096ul>)"),
    ],
)
def test_collective(kind: str | None, name: str) -> None:
    assert collective_kind(name) == kind


@pytest.mark.parametrize(
    ("uses", "name"),
    [
        (True, "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn"),
        (True, "void cutlass::Kernel<cutlass_80_tensorop_s1688gemm_64x64_16x6_nt_align4>"),
        (True, "sm80_xmma_fprop_implicit_gemm_indexed_tf32f32_tf32f32_f32_nhwckrsc_nchw_tilesize128x128x16"),
        (True, "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT"),
        (True, "Cijk_Alik_Bljk_SB_Bias_AS_SAV_UserArgs_MT64x16x32_MI16x16x1_SN_LDSB0"),
        (False, "volta_sgemm_128x32_nt"),
        (False, "ampere_sgemm_32x128_tn"),
        (False, "void cutlass::Kernel<cutlass_80_simt_sgemm_128x32_8x5_nn_align1>"),
        (False, "void gemv2T_kernel_val<int, int, float, float>"),
        (None, "triton_tem_fused_mm_7"),
        (None, "Cijk_Ailk_Bjlk_SB_MT64x64x8_SE"),
    ],
)
def test_matrix_units(uses: bool | None, name: str) -> None:
    assert uses_matrix_units(name) is uses
